"""Comma-separated values: a table as it is, every column; nulls are empty, lists are JSON, times are ISO 8601.

What models and errors say is untrusted, and a spreadsheet runs a cell that starts with = + - @ as a formula. So a text that
could be read so, or starts with an apostrophe, gets one more apostrophe in front; take one off and the text is back::

    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    frame["variant_text"] = frame["variant_text"].str.removeprefix("'")

A column of texts that all look like numbers is read as numbers, unless ``dtype={"variant_text": "string"}`` names it. An empty
text and a null are one in this format, and a NUL character is left out; jsonl keeps both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from quantbench.core.record import Column
from quantbench.core.text import csv_lines, guarded
from quantbench.export import Exporter, ExportRow, json_value

_LINES = 1000


def write(rows: Iterable[ExportRow], columns: Sequence[Column]) -> Iterator[str]:
    """A header line, then a line per row."""
    names = [column.name for column in columns]
    yield csv_lines([names])
    rest = iter(rows)
    while lines := [[_cell(row[name]) for name in names] for row in islice(rest, _LINES)]:
        yield csv_lines(lines)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return guarded(value.replace("\0", ""))
    found = json_value(value)
    if isinstance(found, list):
        return json.dumps(found)
    return "" if found is None else str(found)


CSV = Exporter(name="csv", write=write)
