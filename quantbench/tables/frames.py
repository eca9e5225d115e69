"""Tables as one pandas DataFrame: raw values in base units, with the dtypes that ``quantbench.load`` gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING

from quantbench.results.schema import DTYPES, table_columns
from quantbench.tables.table import Scalar, Table

if TYPE_CHECKING:
    import pandas as pd

_FACTS = ("run_id", "started_at", "model", "prompts", "reference", "instrument_check", "machine", "hardware")
_KINDS: Mapping[str, type] = {"bool": bool, "int": Integral, "float": Real, "string": str}
"""Kinds of column from the narrowest on, with the type of the values that each holds."""


def as_frame(tables: Sequence[Table]) -> pd.DataFrame:
    """One row per row of ``tables``: what it was measured on, then every column, including those hidden from people.

    Unmeasured tables have a ``title`` instead. ``isna`` finds every null. ``attrs`` hold ``caption`` (a line per table),
    ``notes``, and by column ``titles``, ``units`` and ``sources``: claimed, planned or measured. No tables give no columns.
    """
    import pandas as pd

    headings = {heading.key: heading for table in tables for heading in table.headings}
    records: list[dict[str, Scalar]] = [
        {"title": table.title, **table.facts, **{each.key: cell.value for each, cell in zip(table.headings, row, strict=True)}}
        for table in tables
        for row in table.rows
    ]
    names = dict.fromkeys((*_identity(tables), *headings))
    columns = {name: [record.get(name) for record in records] for name in names}
    kinds = {column.name: column.kind for column in table_columns("scenarios")}
    figures = {key for key, heading in headings.items() if heading.numeric or heading.unit}
    frame = pd.DataFrame(
        {
            name: pd.Series(values, dtype=_dtype(values, kinds.get(name), "float" if name in figures else "string"))
            for name, values in columns.items()
        }
    )
    frame.attrs = {
        "caption": "\n".join(table.caption for table in tables),
        "notes": list(dict.fromkeys(note for table in tables for note in table.notes)),
        "titles": {key: heading.title for key, heading in headings.items()},
        "units": {key: heading.unit for key, heading in headings.items() if heading.unit},
        "sources": {key: heading.source for key, heading in headings.items() if heading.source},
    }
    return frame


def _identity(tables: Sequence[Table]) -> Iterable[str]:
    """The columns that come first: what the tables were measured on, or else their titles."""
    found = [name for name in _FACTS if any(table.facts.get(name) is not None for table in tables)]
    return found if "run_id" in found or not tables else ["title"]


def _dtype(values: Sequence[Scalar], kind: str | None, otherwise: str) -> str:
    """The dtype of ``kind`` if it holds all ``values``, else of the narrowest that does; if all are null, of ``otherwise``."""
    known = [value for value in values if value is not None]
    if not known or kind == "time":
        return DTYPES[kind or otherwise]
    fitting = [each for each, of in _KINDS.items() if all(isinstance(value, of) for value in known)]
    if not fitting:
        return "object"
    return DTYPES[kind if kind in fitting else fitting[0]]
