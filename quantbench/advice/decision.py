"""Which variant to ship, the runner-up, and why not the others; ``headline`` puts it into words.

The rule: of the measured variants that keep every limit, drop those that another is surely faster than. Of the rest, pick the
smallest, then the one with the lowest KLD. A variant is surely faster if its whole 95 % interval of decode throughput lies
above the other's, by more than processes of one variant differ; without an interval nothing is surely faster. If another
variant is no larger, no further from the reference and not surely slower than that pick, it is picked instead. The runner-up is
the pick of the same rule once the first is removed. By default the KLD may reach the upper edge of "Good".

Speeds measured beside other work are not ordered. Where the pick depends on one, the answer is that it cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantbench.advice.pareto import Candidate, choose, dominates, possible
from quantbench.advice.words import words
from quantbench.core.units import format_limit, short, significant
from quantbench.results.rows import REPEATS, Group, Row, groups

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_WORD = "Good"
"""The default limit of the KLD is the upper edge of this word of the GGUF scale."""

RULE = "rule: smallest, then lowest in KLD, of those within the limits that none is surely faster than"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits that a variant must keep. ``max_kld`` in nats, ``min_tps`` in decoded tokens/s; None means no limit.

    ``memory_bytes`` limits the weights while running (or as loaded, if that is more). KV cache and activations come on top:
    leave room for them.
    """

    memory_bytes: int | None
    max_kld: float
    min_tps: float | None

    @classmethod
    def asked(cls, *, memory_bytes: int | None = None, max_kld: float | None = None, min_tps: float | None = None) -> Limits:
        """The limits that somebody gave; the KLD may reach the upper edge of "Good" where nobody did."""
        edge = words().quality.upper_edge(DEFAULT_WORD)
        return cls(memory_bytes=memory_bytes, max_kld=edge if max_kld is None else max_kld, min_tps=min_tps)

    @property
    def described(self) -> str:
        """All limits in words."""
        parts = [f"KLD up to {short(self.max_kld)}"]
        if self.memory_bytes is not None:
            parts.append(f"weights within {format_limit(self.memory_bytes)}")
        if self.min_tps is not None:
            parts.append(f"at least {significant(self.min_tps)} tokens/s")
        return ", ".join(parts)

    @property
    def options(self) -> str:
        """What ``quantbench recommend`` has to be given for them, with a space before each."""
        usual = self.max_kld == words().quality.upper_edge(DEFAULT_WORD)
        given = {"memory": self.memory_bytes, "max-kld": None if usual else self.max_kld, "min-tps": self.min_tps}
        return "".join(f" --{name}={value}" for name, value in given.items() if value is not None)

    def broken(self, candidate: Candidate) -> list[tuple[str, float]]:
        """The limits that ``candidate`` breaks: each in words, and by what factor."""
        found = []
        room = self.memory_bytes
        if room is not None and candidate.need_bytes > room:
            found.append((f"needs more than {format_limit(room)}", _factor(candidate.need_bytes, room)))
        if candidate.kld > self.max_kld:
            found.append((f"KLD above {short(self.max_kld)}", _factor(candidate.kld, self.max_kld)))
        if self.too_slow(candidate) and not candidate.disturbed:
            assert self.min_tps is not None
            found.append((f"slower than {significant(self.min_tps)} tokens/s", _factor(self.min_tps, candidate.tps)))
        return found

    def too_slow(self, candidate: Candidate) -> bool:
        """Whether it decodes more slowly than ``min_tps``, as measured."""
        return self.min_tps is not None and candidate.tps < self.min_tps


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a variant is not picked; ``candidate`` holds its figures where all were measured."""

    name: str
    reason: str
    candidate: Candidate | None = None
    tied: bool = False
    """Whether its speed and the pick's cannot be told apart, and fewer bytes or the lower KLD decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to ship of one model, as measured in one run with one prompt set.

    ``pick`` is None when nothing keeps the limits, or when it is one of ``undecided`` and other work hid which.
    """

    model: str
    prompts: str
    run_id: str
    instrument_check: bool
    reference: str
    limits: Limits
    pick: Candidate | None
    undecided: tuple[Candidate, ...]
    disturbed: tuple[str, ...]
    """Names of the variants within the limits that were measured beside other work."""
    runner_up: Rejection | None
    rejected: tuple[Rejection, ...]
    nearest: Rejection | None
    """Without a pick: the variant that breaks the limits by the smallest factor, and which limits those are."""


def decide(
    frame: pd.DataFrame, *, memory_bytes: int | None = None, max_kld: float | None = None, min_tps: float | None = None
) -> list[Choice]:
    """One Choice per run, model and prompt set of ``frame``, which holds rows of ``scenarios``. See the module for the rule.

    A module without tokens gets none: it has neither decode speed nor KLD.

    ``memory_bytes`` and ``min_tps`` None mean no limit; ``max_kld`` None means the upper edge of "Good".
    """
    limits = Limits.asked(memory_bytes=memory_bytes, max_kld=max_kld, min_tps=min_tps)
    return [choice for group in groups(frame) if (choice := decide_on(group, limits))]


def decide_on(group: Group, limits: Limits | None = None) -> Choice | None:
    """The decision on one group; None for one that answered no prompts."""
    return _choice(group, limits or Limits.asked()) if group.reads == "prompts" else None


def _choice(group: Group, limits: Limits) -> Choice:
    found = [as_candidate(row, group) for row in group.rows if not row.flag("control")]
    judged = [(each, limits.broken(each)) for each in found if isinstance(each, Candidate)]
    feasible = [each for each, broken in judged if not broken]
    excluded = [(each, broken) for each, broken in judged if broken]
    pick, undecided = _pick(feasible, limits)
    named = [pick] if pick else list(undecided)
    rest = [each for each in feasible if each not in named]
    second = choose(rest) if pick else None
    beaten = [_beaten(each, named, feasible) for each in rest]
    closest = min(excluded, key=lambda each: max(factor for _, factor in each[1]), default=None)
    return Choice(
        model=group.model,
        prompts=group.prompts,
        run_id=group.fact("run_id"),
        instrument_check=group.instrument_check,
        reference=group.reference,
        limits=limits,
        pick=pick,
        undecided=undecided,
        disturbed=tuple(each.name for each in feasible if each.disturbed),
        runner_up=next((each for each in beaten if each.candidate is second), None),
        rejected=(
            *(_excluded(each, broken) for each, broken in excluded),
            *(each for each in beaten if each.candidate is not second),
            *(each for each in found if isinstance(each, Rejection)),
        ),
        nearest=_excluded(*closest) if closest and not named else None,
    )


def _pick(feasible: Sequence[Candidate], limits: Limits) -> tuple[Candidate | None, tuple[Candidate, ...]]:
    """The pick; or, where it depends on a speed measured beside other work, None and the possible picks."""
    found = possible(feasible)
    if len(found) == 1 and not (found[0].disturbed and limits.too_slow(found[0])):
        return found[0], ()
    return None, tuple(found)


def as_candidate(row: Row, group: Group) -> Candidate | Rejection:
    """The figures of a row of ``group`` that a pick rests on; or why it cannot be one: not measured, or a figure is missing."""
    if not row.ok:
        return Rejection(name=row.label, reason=row.text("status"))
    loaded, tps, kld = row.number("weight_bytes"), row.number("decode_tps"), row.number("kld_mean")
    figures = {"weight bytes": loaded, "decode speed": tps, "KLD": kld}
    if loaded is None or tps is None or kld is None:
        missing = " and ".join(name for name, value in figures.items() if value is None)
        return Rejection(name=row.label, reason=f"no {missing} measured")
    return Candidate(
        name=row.label,
        weight_bytes=loaded,
        need_bytes=max(loaded, row.number("weight_bytes_running") or 0),
        bits_per_weight=row.number("bits_per_weight"),
        tps=tps,
        tps_low=row.number("decode_tps_low"),
        tps_high=row.number("decode_tps_high"),
        tps_ratio=group.speed_ratio(row),
        alternated=row.alternated,
        kld=kld,
        kld_se=row.number("kld_mean_se"),
        kld_low=row.number("kld_mean_low"),
        kld_high=row.number("kld_mean_high"),
        processes=int(row.number(REPEATS) or 1),
        disturbed=row.flag("disturbed"),
    )


def _excluded(candidate: Candidate, broken: Sequence[tuple[str, float]]) -> Rejection:
    return Rejection(name=candidate.name, reason=" and ".join(text for text, _ in broken), candidate=candidate)


def _beaten(candidate: Candidate, named: Sequence[Candidate], feasible: Sequence[Candidate]) -> Rejection:
    """Why a variant that keeps the limits is not one of the ``named``, which it is compared with first."""
    others = [*named, *(each for each in feasible if each not in named)]
    better = [other for other in others if dominates(other, candidate)]
    faster = [other for other in others if other.surely_faster(candidate)]
    if better:
        reason = f"dominated by {better[0].name}"
    elif faster:
        reason = f"slower than {faster[0].name}"
    else:
        return _level(candidate, named[0], feasible)
    return Rejection(name=candidate.name, reason=reason, candidate=candidate)


def _level(candidate: Candidate, pick: Candidate, feasible: Sequence[Candidate]) -> Rejection:
    """Why neither is known to be faster, and what decided instead."""
    decided = "larger" if candidate.weight_bytes > pick.weight_bytes else "KLD higher"
    unknown = [each for each in (candidate, pick) if each.tps_interval is None]
    if unknown:
        why = "was measured beside other work" if unknown[0].disturbed else "has no interval of its speed"
        reason = f"{decided}, and not known to be faster: {unknown[0].name} {why}"
    else:
        reason = f"{decided}, and as fast ({_undetected(pick, feasible):.0%} would have shown)"
    return Rejection(name=candidate.name, reason=reason, candidate=candidate, tied=not unknown)


def _undetected(pick: Candidate, feasible: Sequence[Candidate]) -> float:
    """The largest relative difference in speed from the pick that intervals, and the spread of processes, could hide."""
    hidden = [
        (each.tps_interval[1] - each.tps_interval[0] + pick.tps_interval[1] - pick.tps_interval[0]) / 2 / pick.tps
        + pick.spread(each)
        for each in feasible
        if each is not pick and each.tps_interval and pick.tps_interval
        if not (pick.surely_faster(each) or each.surely_faster(pick))
    ]
    return max(hidden)


def _factor(larger: float, smaller: float) -> float:
    return larger / smaller if smaller else math.inf
