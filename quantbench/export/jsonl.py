"""JSON Lines: a table as it is, an object per row with every column; nulls are null, and so are numbers that are not finite.

Characters beyond ASCII are escaped, so that no reader takes one of them for the end of a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from quantbench.core.record import Column
from quantbench.export import Exporter, ExportRow, json_value


def write(rows: Iterable[ExportRow], columns: Sequence[Column]) -> Iterator[str]:
    """A line per row; times in ISO 8601."""
    for row in rows:
        yield json.dumps({column.name: json_value(row[column.name]) for column in columns}, allow_nan=False) + "\n"


JSONL = Exporter(name="jsonl", write=write)
