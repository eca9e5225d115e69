"""What tutorials claim: the cells of ``claims.toml``, each table with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRow:
    """The claimed cells of one row, word for word, and the variant (``method/precision``) measured against them."""

    variant: str
    cells: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimTable:
    """A claimed table; ``headings`` maps the key of each cell to the text's own heading, in its order."""

    source: str
    date: str
    headings: Mapping[str, str]
    rows: tuple[ClaimRow, ...]


@cache
def claims() -> Mapping[str, ClaimTable]:
    """All claimed tables by name."""
    body = tomllib.loads((files("quantbench.tables") / "claims.toml").read_text(encoding="utf-8"))
    return {name: _table(table) for name, table in body.items()}


def _table(table: Mapping[str, object]) -> ClaimTable:
    headings: dict[str, str] = table["headings"]  # type: ignore[assignment]  # the shipped file is checked by a test
    entries: list[dict[str, str]] = table["rows"]  # type: ignore[assignment]
    rows = tuple(ClaimRow(variant=each["variant"], cells={key: each[key] for key in headings}) for each in entries)
    return ClaimTable(source=str(table["source"]), date=str(table["date"]), headings=headings, rows=rows)
