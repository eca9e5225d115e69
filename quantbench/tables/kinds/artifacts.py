"""Published quantizations of one model, those that claim the same precision together: what they are, and how far off."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from quantbench.results.rows import Group, Row
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble, instrument_note
from quantbench.tables.lines import Line, plain_lines
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:

    from quantbench.tables.table import Table

_NOTES = (
    "holds: method and precision by the artifact's own files; what quantbench made of the same precision stands beside it",
    "like: of the same precision, with a KLD whose 95 % interval overlaps; contrast compares two of them prompt by prompt",
)
_TOLD = ("artifact_audit", "artifact_note")
OURS = "quantbench"
"""The maker of what was quantized in the run itself."""


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per run, model and prompt set in which a published artifact was measured."""
    return [made for group in groups if (made := _table(group))]


def _table(group: Group) -> Table | None:
    held = {_held(row) for row in group.rows if row.text("artifact")}
    lines = [line for line in plain_lines(group) if line.row and _held(line.row) in held and not line.row.flag("control")]
    if not held:
        return None
    lines.sort(key=lambda line: (_held(line.row), line.number("kld_mean") is None, line.number("kld_mean") or 0.0))
    fields = [
        f.Field(Heading(key="variant", title="Artifact"), lambda line: Cell(line.label)),
        f.Field(Heading(key="held", title="Holds"), lambda line: Cell(_held(line.row) or None)),
        f.Field(Heading(key="artifact_maker", title="Made by"), _maker),
        f.measured("weight_bytes", "Size"),
        f.measured("bits_per_weight"),
        f.measured("kld_mean"),
        f.Field(Heading(key="like", title="Like", source="measured"), lambda line: Cell(", ".join(_like(line, lines)) or None)),
        *(f.Field(Heading(key=name, title=name, shown=False), partial(_cell, name)) for name in _TOLD),
        *f.background("kld_mean_low", "kld_mean_high"),
        *f.status(shown=any(line.status != "ok" for line in lines)),
    ]
    told = [f"{line.label}: {text}" for line in lines for name in _TOLD if (text := _text(line, name))]
    return assemble("artifacts", "Published artifacts", lines, fields, [*_NOTES, *told, *instrument_note(group)])


def _held(row: Row | None) -> str:
    """``method/precision`` by the files; empty where they could not be read."""
    return f"{row.text('method')}/{row.text('precision')}" if row and row.text("method") else ""


def _cell(name: str, line: Line) -> Cell:
    return Cell(_text(line, name))


def _maker(line: Line) -> Cell:
    if line.row and not line.row.text("artifact"):
        return Cell(OURS)
    return Cell(_text(line, "artifact_maker"))


def _text(line: Line, name: str) -> str | None:
    return (line.row.text(name) if line.row else "") or None


def _like(line: Line, lines: list[Line]) -> list[str]:
    """The others of its precision whose KLD cannot be told from its own by their intervals."""
    mine = _interval(line)
    others = [(each, _interval(each)) for each in lines if each is not line and _held(each.row) == _held(line.row)]
    return [each.label for each, theirs in others if mine and theirs and mine[0] <= theirs[1] and theirs[0] <= mine[1]]


def _interval(line: Line) -> tuple[float, float] | None:
    low, high = line.number("kld_mean_low"), line.number("kld_mean_high")
    return None if low is None or high is None else (low, high)


ARTIFACTS = TableKind(
    name="artifacts", about="published quantizations: who made them, what they hold, how far off they are", place=46,
    build=table,
)  # fmt: skip
