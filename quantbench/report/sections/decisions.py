"""The decision as a page opens with it: its first part large, the pick beside runner-up and reference, then the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantbench.core.units import format_bytes, short, significant, with_interval
from quantbench.report.sections.rows import NO_REASON
from quantbench.tables.fields import sign_of
from quantbench.tables.table import DASH

if TYPE_CHECKING:
    from quantbench.advice.decision import Choice
    from quantbench.report._results import Results
    from quantbench.results.rows import Group, Row

_SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "Weights": ("weight_bytes", format_bytes),
    "Bits/weight": ("bits_per_weight", "{:.2f}".format),
    "Decode, tokens/s": ("decode_tps", significant),
    "KLD, nats": ("kld_mean", short),
}
_NOT = "not "
HEADS = tuple(_SHOWN)
"""The rows of the table beside the decision."""


@dataclass(frozen=True, slots=True)
class ShownColumn:
    """A variant beside the decision: its part in it, its name, and the figures of HEADS."""

    part: str
    name: str
    figures: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to ship of one model; ``lead``, ``rest`` and ``others`` are the parts of the decision's sentence.

    Of these ``others`` say why not the variants that are neither the pick nor the runner-up.
    """

    model: str
    prompts: str
    instrument_check: bool
    picked: bool
    lead: str
    rest: tuple[str, ...]
    others: tuple[str, ...]
    columns: tuple[ShownColumn, ...]


def decisions(results: Results) -> list[Decision]:
    """One for each model and prompt set that was answered."""
    pairs = [(group, results.choice(group)) for group in results.groups]
    return [_decision(group, choice) for group, choice in pairs if choice]


def _decision(group: Group, choice: Choice) -> Decision:
    lead, *rest = choice.sentence.split("; ")
    return Decision(
        model=choice.model,
        prompts=choice.prompts,
        instrument_check=choice.instrument_check,
        picked=choice.pick is not None,
        lead=lead,
        rest=tuple(part for part in rest if not part.startswith(_NOT)),
        others=tuple(part for part in rest if part.startswith(_NOT)),
        columns=tuple(_columns(group, choice)),
    )


def _columns(group: Group, choice: Choice) -> list[ShownColumn]:
    named = {row.label: row for row in group.rows}
    second = choice.runner_up
    parts = {
        "Ship": named.get(choice.pick.name) if choice.pick else None,
        "Runner-up": named.get(second.name) if second else None,
        "Reference": group.reference_row,
    }
    return [
        ShownColumn(part, row.label, tuple(_figure(row, name, show) for name, show in _SHOWN.values()))
        for part, row in parts.items()
        if row
    ]


def _figure(row: Row, name: str, show: Callable[[float], str]) -> str:
    value = row.number(name)
    if value is None:
        return f"{DASH} ({row.null_reason(name) or NO_REASON})"
    return with_interval(value, row.number(f"{name}_low"), row.number(f"{name}_high"), show=show) + sign_of(row, name)
