"""Comma-separated values: a table as it is, every column; nulls are empty, lists are JSON, times are ISO 8601.

Model output and error messages are untrusted, and a spreadsheet runs a cell that starts with = + - @ as a formula. So a text
that could be read as one, or starts with an apostrophe, gets an apostrophe in front; removing one restores the text::

    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    frame["variant_text"] = frame["variant_text"].str.removeprefix("'")

A column of texts that all look like numbers is read as numbers, unless ``dtype={"variant_text": "string"}`` names it. An empty
text and a null look alike in this format, and NUL characters are dropped; jsonl keeps both.
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
"""Rows that make one piece of text."""


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
