"""Lines of comma-separated values that no spreadsheet runs.

What models and errors say is untrusted, and a spreadsheet takes a cell that starts with = + - @ for a formula: a text that
could be read so, or starts with an apostrophe, gets one more apostrophe in front.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # spreadsheets take the full-width signs as well
_GUARD = "'"
_BREAKS = re.compile('[,"\r\n]')


def csv_lines(cells: Iterable[Sequence[str]]) -> str:
    """Lines of quoted cells; Python's own writer leaves a lone carriage return unquoted, which ends a row."""
    return "".join(",".join(map(_quoted, line)) + "\n" for line in cells)


def guarded(text: str) -> str:
    """``text`` so that no spreadsheet runs it, and so that it can be had back: take one apostrophe off."""
    formula = text.lstrip().startswith(_FORMULA) or text.startswith(("\t", "\r", "\n"))
    return _GUARD + text if formula or text.startswith(_GUARD) else text


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if _BREAKS.search(cell) else cell
