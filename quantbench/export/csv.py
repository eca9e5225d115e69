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
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from quantbench.export import Exporter, Row
from quantbench.export._values import plain
from quantbench.record import Column

_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # spreadsheets take the full-width signs as well
_GUARD = "'"
_BREAKS = re.compile('[,"\r\n]')
_LINES = 1000


def write(rows: Iterable[Row], columns: Sequence[Column]) -> Iterator[str]:
    """A header line, then a line per row."""
    names = [column.name for column in columns]
    yield _lines([names])
    rest = iter(rows)
    while lines := [[_cell(row[name]) for name in names] for row in islice(rest, _LINES)]:
        yield _lines(lines)


def _lines(cells: Iterable[Sequence[str]]) -> str:
    """Lines of quoted cells; Python's own writer leaves a lone carriage return unquoted, which ends a row."""
    return "".join(",".join(map(_quoted, line)) + "\n" for line in cells)


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if _BREAKS.search(cell) else cell


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return _guarded(value.replace("\0", ""))
    found = plain(value)
    if isinstance(found, list):
        return json.dumps(found)
    return "" if found is None else str(found)


def _guarded(text: str) -> str:
    """``text`` so that no spreadsheet runs it, and so that it can be had back."""
    formula = text.lstrip().startswith(_FORMULA) or text.startswith(("\t", "\r", "\n"))
    return _GUARD + text if formula or text.startswith(_GUARD) else text


CSV = Exporter(name="csv", write=write)
