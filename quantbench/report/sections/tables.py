"""Tables of ``quantbench.tables`` as a page shows them: columns of one title under one heading, notes below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from quantbench.results.rows import Group
from quantbench.tables import KINDS
from quantbench.tables.table import DASH, Heading, Table

SEEDS = ("precision", "gguf", "methods")
"""The kinds whose tables a report shows unfolded; the others are folded."""

SERVED = "served"
"""The kind that has a section of its own."""

_LONG = 26
"""Characters; a column with a longer text may wrap."""


@dataclass(frozen=True, slots=True)
class Head:
    """A heading over ``span`` columns and as many ``lines`` of headings; ``source`` says where figures come from."""

    title: str
    source: str = ""
    span: int = 1
    lines: int = 1
    numeric: bool = False


@dataclass(frozen=True, slots=True)
class SheetField:
    """A cell: its text, and the classes of its looks."""

    text: str
    looks: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A table to be shown; ``upper`` is empty where one line of headings does."""

    title: str
    caption: str
    upper: tuple[Head, ...]
    lower: tuple[Head, ...]
    rows: tuple[tuple[SheetField, ...], ...]
    notes: tuple[str, ...]


def sheets(groups: Sequence[Group]) -> tuple[list[Sheet], list[Sheet]]:
    """The tables of SEEDS, in their order, and all others that have rows in them, except that of servers."""
    others = sorted((kind for kind in KINDS if kind.name not in (*SEEDS, SERVED)), key=lambda kind: kind.place)
    first = [sheet(table) for name in SEEDS for table in KINDS[name].tables(groups)]
    return first, [sheet(table) for kind in others for table in kind.tables(groups)]


def served(groups: Sequence[Group]) -> list[Sheet]:
    """The tables of servers; none where no server was measured."""
    return [sheet(table) for table in KINDS[SERVED].tables(groups)]


def sheet(table: Table) -> Sheet:
    """One table, ready for the page."""
    columns = table.shown_columns()
    headings = [heading for heading, _ in columns]
    single = [Head(heading.title, numeric=heading.numeric) for heading in headings]
    upper, lower = _grouped(headings) if table.compares else ([], single)
    starts = {sum(head.span for head in upper[:index]) for index in range(len(upper))}
    looks = [_looks(heading, texts, starts=number in starts) for number, (heading, texts) in enumerate(columns)]
    return Sheet(
        title=table.title,
        caption=table.caption,
        upper=tuple(upper),
        lower=tuple(lower),
        rows=tuple(
            tuple(SheetField(text, f"{look} missing" if text == DASH else look) for text, look in zip(row, looks, strict=True))
            for row in zip(*(texts for _, texts in columns), strict=True)
        ),
        notes=table.notes,
    )


def _looks(heading: Heading, texts: list[str], *, starts: bool) -> str:
    """Classes of a column's cells: numbers to the right, long texts wrapped, a rule where a group starts."""
    long = not heading.numeric and max(map(len, texts), default=0) > _LONG
    return " ".join(name for name, holds in (("number", heading.numeric), ("long", long), ("starts", starts)) if holds)


def _head(heading: Heading, title: str) -> Head:
    return Head(title, source=heading.source, numeric=heading.numeric)


def _grouped(headings: list[Heading]) -> tuple[list[Head], list[Head]]:
    """Neighbours whose titles begin alike under one heading, with what tells them apart below it."""
    upper: list[Head] = []
    lower: list[Head] = []
    for title, same in groupby(headings, key=lambda heading: heading.title.partition(", ")[0]):
        together = [_head(heading, heading.title.partition(", ")[2]) for heading in same]
        alone = len(together) == 1 and not together[0].source and not together[0].title
        upper.append(Head(title, span=len(together), lines=2 if alone else 1))
        lower += [] if alone else together
    return upper, lower
