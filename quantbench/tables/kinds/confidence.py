"""Where the distance comes from: KLD by deciles of the reference's confidence, EAR, and what rounding alone would cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantbench.core.units import short, significant
from quantbench.metrics.confidence import DECILES
from quantbench.results.rows import Group, Row
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble, instrument_note
from quantbench.tables.lines import Line, plain_lines
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:

    from quantbench.tables.table import Table

_DECILES = [f"kld_confidence_d{number}" for number in range(1, DECILES + 1)]


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per run, model and prompt set with scored positions."""
    return [_table(group) for group in groups if any(row.number("ear") is not None for row in group.rows)]


def _table(group: Group) -> Table:
    floor = next((row for row in group.rows if row.number("kld_floor") is not None), None)
    fields = [
        f.Field(Heading(key="variant", title="Variant"), lambda line: Cell(line.label)),
        f.measured("kld_mean", "KLD, nats", short),
        *([_over(floor)] if floor and floor.number("kld_floor") else []),
        f.measured("ear"),
        f.measured("kld_confident"),
        *(f.measured(name) for name in _DECILES),
        *f.background("kld_mean_se", "ear_se", "kld_confident_se", "confidence_median"),
    ]
    notes = [*_notes(group, floor), *instrument_note(group)]
    return assemble("confidence", "KLD by confidence", plain_lines(group), fields, notes)


def _over(floor: Row) -> f.Field:
    """KLD over the rounding floor."""
    least = floor.number("kld_floor")
    heading = Heading(key="kld_over_floor", title="x rounding", unit="ratio", source="measured", numeric=True)

    def cell(line: Line) -> Cell:
        kld = line.number("kld_mean")
        return Cell.of(kld / least if kld is not None and least else None, significant)

    return f.Field(heading, cell)


def _notes(group: Group, floor: Row | None) -> list[str]:
    median = next((value for row in group.rows if (value := row.number("confidence_median")) is not None), None)
    notes = [
        "decile 1 is the tenth of the positions where the reference is least sure, decile 10 where it is surest"
        + (f"; its most likely token has a median probability of {median:.2f}" if median is not None else ""),
        "EAR: the share of the variant's tokens that speculative decoding would accept, with the variant as the draft",
    ]
    if floor is None:
        return notes
    kld, ear, top1 = (floor.number(name) for name in ("kld_floor", "ear_floor", "top1_floor"))
    what = f"rounding alone, to {floor.text('checkpoint_dtype')} after every layer of the reference"
    figures = [
        f"KLD {short(kld or 0.0)}", *([f"EAR {ear:.2%}"] if ear is not None else []),
        *([f"top-1 {top1:.1%}"] if top1 is not None else []),
    ]  # fmt: skip
    return [*notes, f"{what}: {', '.join(figures)}; what is no farther off is tied with the original"]


CONFIDENCE = TableKind(
    name="confidence", about="KLD by the reference's confidence, EAR, and the rounding floor", place=47, build=table
)
