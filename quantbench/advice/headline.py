"""A decision in words: one line of at most 100 columns, a line of what to know with it, and why not the other variants."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from quantbench.core.units import format_bytes, format_limit, short, significant, with_error

if TYPE_CHECKING:
    from quantbench.advice.decision import Choice, Rejection
    from quantbench.advice.pareto import Candidate

COLUMNS = 100
"""The most that a headline takes; only names that are longer than that themselves make it longer."""

WHY = "quantbench recommend --why"
_DECIMALS = 5


def headline(choice: Choice) -> str:
    """What to ship, its figures, and which variants are as fast as that; or why nothing can be named.

    ``±`` is one standard error; a speed ratio is ``about`` where the reference ran in another process; ``~`` marks a speed
    measured beside other work.
    """
    if choice.pick:
        return _first_that_fits(_shipped(choice, choice.pick))
    return _first_that_fits(_untold(choice) if choice.undecided else _nothing(choice))


def context(choice: Choice, *, counted: bool = True, options: str = "") -> str:
    """What to know with the headline, in one line: how many others there are (if ``counted``), and what it holds for.

    ``options`` are what the command that it names needs to read the same results.
    """
    count = len(others(choice)) if counted else 0
    parts = [f"{count} {'other' if count == 1 else 'others'}: {WHY}{options}"] if count else []
    if choice.limits.memory_bytes is not None and choice.pick:
        parts.append("KV cache and activations come on top of the weights")
    if choice.instrument_check:
        parts.append(f"{choice.model} is an instrument check: this holds for {choice.model} only")
    return "; ".join(parts)


def others(choice: Choice) -> list[Rejection]:
    """All variants that were not picked, with reasons: the runner-up, then those with all figures, then the rest."""
    rest = sorted(choice.rejected, key=lambda rejection: rejection.candidate is None)  # stable: their order stays
    return [*([choice.runner_up] if choice.runner_up else []), *rest]


def named(choice: Choice) -> list[str]:
    """Names of the variants in the headline: the pick and what is as fast, or the possible picks, or the nearest."""
    if choice.pick:
        return [choice.pick.name, *(rejection.name for rejection in _tied(choice))]
    return [each.name for each in choice.undecided] or ([choice.nearest.name] if choice.nearest else [])


def _shipped(choice: Choice, pick: Candidate) -> Iterable[str]:
    """Versions of the headline, the most complete first."""
    budget = choice.limits.memory_bytes
    start = f"Under {format_limit(budget)} ship" if budget is not None else "Ship"
    size = format_bytes(pick.weight_bytes)
    if pick.need_bytes > 1.01 * pick.weight_bytes:  # growth up to 1 % is not worth a clause
        size += f", {format_bytes(pick.need_bytes)} running"
    rate = f"{significant(pick.tps)}{'~' if pick.disturbed else ''} tok/s"
    kld = f"KLD {_kld(pick.kld, pick.kld_se)}"
    tied = [rejection.name for rejection in _tied(choice)]
    counted = f"; {len(tied)} as fast" * bool(tied)
    for level in (_as_fast(tied, pick.name), _as_fast(tied[:1], pick.name, len(tied) - 1), counted):
        yield f"{start} {pick.name}: {size}, {rate}{_ratio(pick, choice.reference)}, {kld}{level}"
    yield f"{start} {pick.name}: {size}, {rate}, {kld}"


def _kld(value: float, error: float | None) -> str:
    """The figure and its standard error to the error's first digit; with an exponent where that would take many zeros."""
    decimals = -math.floor(math.log10(error)) if error else 0
    return f"{value:.{decimals}f} ± {error:.{decimals}f}" if 1 <= decimals <= _DECIMALS else with_error(value, error)


def _ratio(pick: Candidate, reference: str) -> str:
    """The speed over the reference's, which goes by its precision alone."""
    if pick.tps_ratio is None or pick.name == reference or pick.disturbed:
        return ""
    return f" ({'' if pick.alternated else 'about '}{significant(pick.tps_ratio, 2)}x {reference.partition('/')[2]})"


def _tied(choice: Choice) -> list[Rejection]:
    return [rejection for rejection in others(choice) if rejection.tied]


def _as_fast(names: Sequence[str], pick: str, more: int = 0) -> str:
    """The tied variants, those of the pick's method by their precision alone."""
    method = pick.partition("/")[0] + "/"
    shown = ", ".join(name.removeprefix(method) for name in names)
    return f"; as fast: {shown}{f' and {more} more' if more > 0 else ''}" if names else ""


def _untold(choice: Choice) -> Iterable[str]:
    mend = "run again on a quiet machine"
    names = [each.name for each in choice.undecided]
    yield f"Cannot tell {' from '.join(names)}, measured beside other work: {mend}"
    yield f"Cannot tell which of {len(names)} variants to ship, measured beside other work: {mend}"


def _nothing(choice: Choice) -> Iterable[str]:
    near = choice.nearest
    if near is None or near.candidate is None:
        yield "Ship none: no variant has all the figures that a pick needs (weights, decode speed, KLD)"
        return
    yield f"Ship none: none keeps {choice.limits.described}; nearest is {near.name}, {near.reason}"
    yield f"Ship none within the limits; nearest is {near.name}, {near.reason}"
    yield f"Ship none within the limits; nearest is {near.name}"


def _first_that_fits(versions: Iterable[str]) -> str:
    """The first version within COLUMNS, else the last one."""
    shown = ""
    for shown in versions:
        if len(shown) <= COLUMNS:
            break
    return shown


def figures(candidate: Candidate | None) -> tuple[str, str, str]:
    """Weights, decode speed in tokens/s and KLD in nats as a table of reasons shows them; dashes where nothing was measured."""
    if candidate is None:
        return ("–", "–", "–")
    return (
        format_bytes(candidate.weight_bytes),
        significant(candidate.tps) + ("~" if candidate.disturbed else ""),
        short(candidate.kld),
    )
