"""What is shown: a Table of cells that know their raw value and their text, independent of any output format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

Scalar = str | int | float | bool | None
_Value = TypeVar("_Value", bound=str | int | float | bool)

DASH = "–"
"""Stands for a missing figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """A column. ``key`` and ``unit`` are for machines (base units), ``title`` and ``source`` for people.

    A column that is not ``shown`` goes to CSV and JSON only; one that ``wraps`` may take several lines on a terminal.
    """

    key: str
    title: str
    unit: str = ""
    source: Literal["", "claimed", "planned", "measured"] = ""
    shown: bool = True
    numeric: bool = False
    wraps: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A raw value in base units (None if missing), the text that people see instead, and a footnote sign."""

    value: Scalar
    text: str = ""
    mark: str = ""

    @classmethod
    def of(cls, value: _Value | None, show: Callable[[_Value], str]) -> Self:
        """A value and its text; ``show`` is called only where there is a value."""
        return cls(None) if value is None else cls(value, show(value))

    @property
    def shown(self) -> str:
        """The text for people; an en dash where there is no value."""
        if self.value is None:
            return DASH
        return (self.text or str(self.value)) + self.mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A titled table of one run, model and prompt set; ``facts`` say what it was measured on, ``notes`` are footnotes."""

    name: str
    title: str
    facts: Mapping[str, Scalar]
    caption: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    listed: bool = False
    """Whether a terminal shows each row as its first cell with the others below, for cells that are sentences."""

    @property
    def compares(self) -> bool:
        """Whether claims stand beside measurements, so that each column must say which of them it is."""
        return any(heading.source == "claimed" for heading in self.headings)

    def shown_columns(self) -> list[tuple[Heading, list[str]]]:
        """The columns shown to people, each with its texts."""
        return [
            (heading, [row[index].shown for row in self.rows]) for index, heading in enumerate(self.headings) if heading.shown
        ]
