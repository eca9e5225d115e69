"""Exports: one file each. A format turns the rows of a stored table into the text that another tool reads.

A new format is one file here (or an entry point in the group ``quantbench.export``) that holds an Exporter. From Python::

    from quantbench import load
    from quantbench.export import export
    text = "".join(export("jsonl", load("results")))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from quantbench.core.errors import UsageError, unknown_name
from quantbench.core.record import Column
from quantbench.core.registry import Registry
from quantbench.results.schema import schema, table_columns

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["EXPORTERS", "Direction", "Exporter", "Row", "export"]

Direction = Literal["lower", "higher"]

ExportRow = Mapping[str, Any]
"""A stored row in Python's own types: every null is None, times know their zone, lists are lists."""

_BATCH = 10_000
"""Rows converted to Python's types at a time, so that memory stays small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """A format. ``write`` turns rows and the chosen columns into pieces of text; it yields none where nothing can be exported.

    A format of ``figures`` reads the table ``scenarios`` and gets only metric columns with a direction (of these those that it
    names in ``only``, if it names any); any other gets a whole table. A format of ``one_direction`` can only say of a whole
    file whether lower or higher is better.
    """

    name: str
    write: Callable[[Iterable[ExportRow], Sequence[Column]], Iterator[str]]
    figures: bool = False
    only: tuple[str, ...] = ()
    one_direction: bool = False


EXPORTERS: Registry[Exporter] = Registry("quantbench.export", Exporter, "export format")


def export(
    name: str,
    frame: pd.DataFrame,
    table: str = "scenarios",
    *,
    better: Direction | None = None,
    metrics: Sequence[str] = (),
) -> Iterator[str]:
    """Pieces of the text of ``frame``, rows of ``table`` as ``quantbench.load`` returns them, in the format called ``name``.

    For a format of figures, ``better`` keeps only metrics of that direction, and ``metrics`` only those named.
    UsageError for an unknown name, and for an option that does not apply to the format.
    """
    exporter = EXPORTERS[name]
    columns = table_columns(table)
    known = {column.name for column in columns}
    extra = [str(column) for column in frame if column not in known]
    if exporter.figures:
        columns = _wanted(exporter, table, columns, better, metrics)
    elif better or metrics:
        raise UsageError(f"{name} writes a table as it is; omit --better and --metric")
    else:
        columns += tuple(Column(column, "", doc="from a version or a metric that is not installed here") for column in extra)
    return exporter.write(_rows(frame, schema(table), extra), columns)


def json_value(value: Any) -> Any:
    """``value`` with times in ISO 8601 and None for numbers that are not finite, inside lists too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list):
        return [json_value(each) for each in value]
    return value


def _wanted(
    exporter: Exporter, table: str, columns: Sequence[Column], better: Direction | None, metrics: Sequence[str]
) -> tuple[Column, ...]:
    """The metric columns to export. UsageError where there are none, or they do not suit the format."""
    if table != "scenarios":
        raise UsageError(f"{exporter.name} takes figures of the table 'scenarios', not of {table!r}; csv and jsonl take any")
    only = exporter.only or [column.name for column in columns]
    known = {column.name: column for column in columns if column.better and column.name in only}
    if unknown := [metric for metric in metrics if metric not in known]:
        raise unknown_name("metric with a direction", unknown[0], known)
    chosen = [known[metric] for metric in dict.fromkeys(metrics)] if metrics else list(known.values())
    chosen = [column for column in chosen if better in (None, column.better)]
    if not chosen:
        raise UsageError(f"none of {', '.join(metrics)} is better when {better}; omit --better or --metric")
    if exporter.one_direction and len({column.better for column in chosen}) > 1:
        raise UsageError(
            f"{exporter.name} reads one direction per file; write two, one with --better lower and one with --better higher"
        )
    return tuple(chosen)


def _rows(frame: pd.DataFrame, known: pa.Schema, extra: Sequence[str]) -> Iterator[ExportRow]:
    """The rows of ``frame`` in Python's own types; the type of ``extra`` columns follows from their values."""
    import pyarrow as pa

    types = pa.schema([*known, *pa.Schema.from_pandas(frame[list(extra)], preserve_index=False)])
    for start in range(0, len(frame), _BATCH):
        batch = pa.Table.from_pandas(frame.iloc[start : start + _BATCH], schema=types, preserve_index=False)
        yield from batch.to_pylist()
