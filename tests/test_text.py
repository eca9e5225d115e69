"""Untrusted text is made safe for where it is shown."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.text import csv_lines, escape_markdown, one_line, visible

HOSTILE = "\x1b[31mred\x9b\r\u202e\u2028\ud800\0"


@given(st.text())
def test_one_line_is_one_and_commands_nothing(text: str) -> None:
    assert one_line(text).isprintable()
    assert one_line(text) == one_line(one_line(text))


def test_what_would_not_be_seen_is_shown_as_its_escape() -> None:
    assert visible(f"a\tb\n{HOSTILE}") == "a\\tb\n\\x1b[31mred\\x9b\\r\\u202e\\u2028\\ud800\\x00"
    assert visible("a\tb\n", "\t") == "a\tb\\n"
    assert visible("plain ä 漢") == "plain ä 漢"


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("<script>&", "&lt;script&gt;&amp;"),
        ("[x](http://y) `z` *b*", r"\[x\](http://y) \`z\` \*b\*"),
        ("back\\slash|", r"back\\slash\|"),
        ("two\nlines\x1b[31m", r"two lines \[31m"),
        ("q4_k_m", "q4_k_m"),
    ],
)
def test_markdown_escapes(raw: str, escaped: str) -> None:
    assert escape_markdown(raw) == escaped


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=3), max_size=3))
def test_lines_of_cells_are_read_back(rows: list[list[str]]) -> None:
    assert list(csv.reader(io.StringIO(csv_lines(rows), newline=""))) == rows


def test_cells_are_quoted_where_they_must_be() -> None:
    assert csv_lines([["a", "b,c", 'd"'], ["x\ry", "", "z\n"]]) == 'a,"b,c","d"""\n"x\ry",,"z\n"\n'
