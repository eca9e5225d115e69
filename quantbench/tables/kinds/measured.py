"""The rows of a run with their main figures: the columns that declare themselves part of the overview.

All rows, or a shortlist of at most ten: the reference and its control, what a decision names, and the front in size and KLD.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from quantbench.advice.pareto import beats
from quantbench.results.rows import Group, Row
from quantbench.results.schema import shown_columns
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble, instrument_note
from quantbench.tables.kinds.modules import calls
from quantbench.tables.kinds.perplexity import scores
from quantbench.tables.lines import plain_lines
from quantbench.tables.render import text_width
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:

    from quantbench.tables.table import Table

SHORTLIST = 10
"""The most rows of a shortlist."""

_ESSENTIAL = ("variant", "status", "weight_bytes", "decode_tps", "kld_mean")
_FIRST_TO_GO = "bits_per_weight"
"""Says the same as the size."""


def overview(groups: Sequence[Group]) -> list[Table]:
    """One table per run, model and prompt set."""
    return [table_of(group) for group in groups]


def shortlist(group: Group, named: Collection[str], width: int) -> Table:
    """At most SHORTLIST rows, ``named`` ones (by label) among them, with as many columns as ``width`` holds."""
    chosen = _chosen(group, named)
    lines = [line for line in plain_lines(group) if line.row in chosen]
    unmeasured = any(not row.ok for row in chosen)
    made = assemble("measured", "Measured", lines, _fields(group, status=unmeasured), [], terse=True)
    return _narrowed(made, width)


def table_of(group: Group) -> Table:
    """Every row of the group."""
    notes = ["intervals are 95 %, ± is one standard error, MB = 10^6 bytes"]
    fields = _fields(group, status=True)
    return assemble("measured", "Measured", plain_lines(group), fields, [*notes, *instrument_note(group)])


def _fields(group: Group, *, status: bool) -> list[f.Field]:
    name = f.Field(Heading(key="variant", title="Variant"), lambda line: Cell(line.label))
    return [name, *_figures(group), *f.status(shown=status)]


def _chosen(group: Group, named: Collection[str]) -> list[Row]:
    """The rows of a shortlist in the group's order; all of them where they are few."""
    if len(group.rows) <= SHORTLIST:
        return list(group.rows)
    reference = [row for row in group.rows if row.variant == group.reference]
    first = [row for row in group.rows if row.label in named or row in reference]
    # What a decision could have named comes before what is larger: a front begins at its smallest.
    front = sorted(_front(group), key=lambda row: row.number("weight_bytes") or 0)
    kept = [*first, *(row for row in front if row not in first)][:SHORTLIST]
    return [row for row in group.rows if row in kept]


def _front(group: Group) -> list[Row]:
    """Rows that no other beats in both size and KLD."""
    places = {}
    for index, row in enumerate(group.rows):
        size, kld = row.number("weight_bytes"), row.number("kld_mean")
        if row.ok and size is not None and kld is not None:
            places[index] = (float(size), float(kld))
    return [group.rows[index] for index, here in places.items() if not any(beats(there, here) for there in places.values())]


def _narrowed(table: Table, width: int) -> Table:
    """The table without its least important columns, until it fits; those that a decision rests on stay."""
    places = {column.name: column.place for column in shown_columns("overview")}
    spare = [heading.key for heading in table.headings if heading.shown and heading.key not in _ESSENTIAL]
    for key in sorted(spare, key=lambda key: (key != _FIRST_TO_GO, -places.get(key, 0))):
        if text_width(table) <= width:
            break
        headings = tuple(replace(each, shown=False) if each.key == key else each for each in table.headings)
        table = replace(table, headings=headings)
    return table


def _figures(group: Group) -> list[f.Field]:
    """The columns of an overview; for a text or a module, those that some row has, then those of that kind alone."""
    columns = shown_columns("overview")
    own = {"prompts": [], "text": scores(), "inputs": calls(group.reference)}[group.reads]
    taken = {field.heading.key for field in own}
    if group.reads != "prompts":
        columns = tuple(each for each in columns if not each.timed and each.name not in taken and _is_known(group, each.name))
    return [*(f.measured(column.name) for column in columns), *own]


def _is_known(group: Group, name: str) -> bool:
    return any(row.number(name) is not None for row in group.rows)


MEASURED = TableKind(name="measured", about="every row with its main figures", place=5, build=overview)
