"""The decision that opens the page: its first part large, the pick beside runner-up and reference, then the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantbench.advice.decision import RULE
from quantbench.advice.headline import context, headline, others
from quantbench.core.units import with_interval
from quantbench.report.sections.rows import NO_REASON
from quantbench.results.schema import column_of
from quantbench.tables.fields import sign_of
from quantbench.tables.table import DASH

if TYPE_CHECKING:
    from quantbench.advice.decision import Choice
    from quantbench.core.record import Column
    from quantbench.report._results import Results
    from quantbench.results.rows import Group, Row

_SHOWN = ("weight_bytes", "bits_per_weight", "decode_tps", "kld_mean")
"""The figures that a decision rests on."""


def heads() -> tuple[str, ...]:
    """The rows of the table beside the decision."""
    return tuple(column_of(name).title for name in _SHOWN)


@dataclass(frozen=True, slots=True)
class ShownColumn:
    """A variant beside the decision: its part in it, its name, and the figures of ``heads``."""

    part: str
    name: str
    figures: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to ship of one model: ``lead`` is the decision in one line, ``rest`` what to know with it.

    ``others`` say why the variants other than the pick were rejected.
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
    return Decision(
        model=choice.model,
        prompts=choice.prompts,
        instrument_check=choice.instrument_check,
        picked=choice.pick is not None,
        lead=headline(choice),
        rest=tuple(filter(None, (context(choice, counted=False), RULE))),
        others=_reasons(choice),
        columns=tuple(_columns(group, choice)),
    )


def _reasons(choice: Choice) -> tuple[str, ...]:
    """Why not the others, those with the same reason together."""
    names: dict[str, list[str]] = {}
    for other in others(choice):
        names.setdefault(other.reason, []).append(other.name)
    return tuple(f"not {', '.join(group)}: {reason}" for reason, group in names.items())


def _columns(group: Group, choice: Choice) -> list[ShownColumn]:
    named = {row.label: row for row in group.rows}
    second = choice.runner_up
    parts = {
        "Ship": named.get(choice.pick.name) if choice.pick else None,
        "Runner-up": named.get(second.name) if second else None,
        "Reference": group.reference_row,
    }
    return [
        ShownColumn(part, row.label, tuple(_figure(row, column_of(name)) for name in _SHOWN))
        for part, row in parts.items()
        if row
    ]


def _figure(row: Row, column: Column) -> str:
    name = column.name
    value = row.number(name)
    if value is None:
        return f"{DASH} ({row.null_reason(name) or NO_REASON})"
    return with_interval(value, row.number(f"{name}_low"), row.number(f"{name}_high"), show=column.write) + sign_of(row, name)
