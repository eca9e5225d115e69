"""The noise floor: what varies although nothing changed. Fresh processes of one variant, and the reference against itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING

from quantbench.core.units import short
from quantbench.results.rows import Group, Row
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble, instrument_note
from quantbench.tables.lines import Line, plain_lines
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:

    from quantbench.tables.table import Table

_FIGURES = (
    ("decode_tps", "Decode"), ("itl_ratio", "Decode, x anchor"),
    ("prefill_tps", "Prefill"), ("prefill_ratio", "Prefill, x anchor"),
    ("call_s", "Call"), ("call_ratio", "Call, x anchor"),
    ("peak_rss_bytes", "Peak RSS"),
)  # fmt: skip
_NOTES = (
    "spread: standard deviation between fresh processes over their mean; in brackets, the largest over the smallest",
    "the KLD of the control is the instrument's own floor; x anchor: over the anchor's figure of the same process",
)


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per run, model and prompt set measured in more than one process per variant."""
    return [made for group in groups if (made := _table(group))]


def _table(group: Group) -> Table | None:
    own = [row for row in group.stored if row.ok]
    processes = {id(line.row): [row for row in own if _same(row, line)] for line in plain_lines(group)}
    lines = [line for line in plain_lines(group) if len(processes[id(line.row)]) > 1]
    if not lines:
        return None

    def figures(line: Line, name: str) -> list[float]:
        return [number for row in processes[id(line.row)] if (number := row.number(name)) is not None]

    fields = [
        f.Field(Heading(key="variant", title="Variant"), _variant),
        f.Field(Heading(key="processes", title="Processes", numeric=True), lambda line: Cell(len(processes[id(line.row)]))),
        *(_spread(name, title, figures) for name, title in _FIGURES if any(figures(line, name) for line in lines)),
        *([f.measured("kld_mean", "KLD, nats", short)] if any(figures(line, "kld_mean") for line in lines) else []),
    ]
    return assemble("noise", "Noise floor", lines, fields, [*_NOTES, *instrument_note(group)])


def _variant(line: Line) -> Cell:
    control = line.row is not None and line.row.flag("control")
    return Cell(line.variant + (" (control)" if control else ""))


def _same(row: Row, line: Line) -> bool:
    return line.row is not None and row.variant == line.variant and row.flag("control") == line.row.flag("control")


def _spread(name: str, title: str, figures: Callable[[Line, str], list[float]]) -> f.Field:
    heading = Heading(key=f"{name}_spread", title=f"{title}, spread", unit="ratio", source="measured", numeric=True)

    def cell(line: Line) -> Cell:
        found = figures(line, name)
        if len(found) < 2 or not min(found) > 0:
            return Cell(None)
        spread = stdev(found) / mean(found)
        return Cell(spread, f"{spread:.1%} ({max(found) / min(found):.2f} x)")

    return f.Field(heading, cell)


NOISE = TableKind(name="noise", about="fresh processes of one variant, and the reference against itself", place=70, build=table)
