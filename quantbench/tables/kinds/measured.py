"""All rows of a run with their main figures: the columns that declare themselves part of the overview."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantbench.results.rows import Group, groups
from quantbench.results.schema import shown_columns
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble, instrument_note
from quantbench.tables.kinds.modules import calls
from quantbench.tables.kinds.perplexity import scores
from quantbench.tables.lines import plain_lines
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:
    import pandas as pd

    from quantbench.tables.table import Table


def overview(frame: pd.DataFrame) -> list[Table]:
    """One table per run, model and prompt set of ``frame``, which holds rows of ``scenarios``."""
    return [_table(group) for group in groups(frame)]


def _table(group: Group) -> Table:
    fields = [
        f.Field(Heading(key="variant", title="Variant"), lambda line: Cell(line.label)),
        *_figures(group),
        *f.status(shown=True),
    ]
    notes = ["intervals are 95 %, ± is one standard error, MB = 10^6 bytes"]
    return assemble("measured", "Measured", plain_lines(group), fields, [*notes, *instrument_note(group)])


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
