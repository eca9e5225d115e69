"""Untrusted text made safe for where it is shown: what models, libraries and servers say, and names from files.

Everything that goes to a terminal, to Markdown, to a page, to XML or to a spreadsheet passes one of these; HTML's own signs are
escaped by jinja2 and markupsafe.
"""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Iterable, Sequence

_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # spreadsheets take the full-width signs as well
_GUARD = "'"


def one_line(text: str) -> str:
    """``text`` without line breaks, terminal escapes or other control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def visible(text: str, kept: str = "\n") -> str:
    """``text`` with what would not be seen, or would steer a terminal or the reader's eye, as its escape.

    Those are NUL, escapes, direction overrides, U+2028 and the like; the characters ``kept`` stay.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in text)


def escape_markdown(text: str) -> str:
    """``text`` as one line that no Markdown reader takes for markup, a cell border or HTML."""
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(one_line(text), quote=False))


def csv_lines(rows: Iterable[Sequence[str]]) -> str:
    """Lines of comma-separated cells, quoted where they must be; none of them is guarded here."""
    lines = _Lines()
    csv.writer(lines).writerows(rows)  # both signs of its line end are quoted in a cell: a lone carriage return ends a row
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def guarded(text: str) -> str:
    """``text`` so that no spreadsheet runs it, and so that it can be had back: take one apostrophe off.

    A spreadsheet takes a cell that starts with = + - @ for a formula: a text that could be read so, or starts with an
    apostrophe, gets one more apostrophe in front.
    """
    formula = text.lstrip().startswith(_FORMULA) or text.startswith(("\t", "\r", "\n"))
    return _GUARD + text if formula or text.startswith(_GUARD) else text


class _Lines(list[str]):
    """What csv writes to, a line at a time."""

    def write(self, line: str) -> None:
        """Keep it."""
        self.append(line)
