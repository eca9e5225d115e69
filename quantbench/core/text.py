"""Untrusted text made safe for where it is shown: output of models, libraries and servers, and names from files.

Everything that goes to a terminal, Markdown, a web page, XML or a spreadsheet passes through one of these functions; jinja2 and
markupsafe escape HTML's special characters.
"""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Iterable, Sequence

_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # spreadsheets take the full-width signs as well
_GUARD = "'"

MOST = 2000
"""Characters of a message: what it quotes may be a file's whole content."""


def one_line(text: str) -> str:
    """``text`` without line breaks, terminal escapes or other control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def shortened(text: str, most: int = MOST) -> str:
    """``text``; of a longer one than ``most`` characters, both ends, and between them how many were left out.

    A sentence begins with what is wrong and ends with what to do: what is quoted between them may have any length.
    """
    if len(text) <= most:
        return text
    end = most // 2
    return f"{text[:end]} [... {len(text) - 2 * end:,} characters ...] {text[-end:]}"


def quoted(value: object) -> str:
    """``repr`` of a value that a file holds; in words where there is none, as of deep lists and long numbers."""
    try:
        return shortened(repr(value), MOST // 4)
    except (RecursionError, ValueError):
        return f"something of type {type(value).__name__}, too deep or too long to show"


def visible(text: str, kept: str = "\n") -> str:
    """``text`` with characters escaped that are invisible, or would control a terminal or mislead the reader.

    Those are NUL, escapes, direction overrides, U+2028 and the like; the characters in ``kept`` stay.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in text)


def escape_markdown(text: str) -> str:
    """``text`` as one line that no Markdown reader takes for markup, a cell border or HTML."""
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(one_line(text), quote=False))


def csv_lines(rows: Iterable[Sequence[str]]) -> str:
    """Lines of comma-separated cells, quoted where needed; formulas are not guarded here."""
    lines = _Lines()
    csv.writer(lines).writerows(rows)  # its default line end makes it quote a lone carriage return too, which would end a row
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def guarded(text: str) -> str:
    """``text`` so that no spreadsheet runs it; remove one leading apostrophe to get it back.

    A spreadsheet takes a cell that starts with = + - @ for a formula: a text that could be read as one, or that starts with an
    apostrophe, gets an apostrophe in front.
    """
    formula = text.lstrip().startswith(_FORMULA) or text.startswith(("\t", "\r", "\n"))
    return _GUARD + text if formula or text.startswith(_GUARD) else text


class _Lines(list[str]):
    """A list that csv can write to, line by line."""

    def write(self, line: str) -> None:
        """Keep it."""
        self.append(line)
