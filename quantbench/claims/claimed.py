"""What tutorials claim: the cells and sentences of ``claims.toml``, each with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierText:
    """A size that was published for an earlier recipe."""

    size: str
    date: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRow:
    """The claimed cells of one row, word for word, and the variant (``method/precision``) that is compared with them."""

    variant: str
    cells: Mapping[str, str]
    earlier: tuple[EarlierText, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimTable:
    """A claimed table; ``headings`` maps the key of each cell to the text's own heading, in its order.

    ``models`` names the model that a column of sizes is about, ``checks`` the rule by which a column's cells are judged.
    """

    source: str
    date: str
    headings: Mapping[str, str]
    models: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[ClaimRow, ...]

    @property
    def first(self) -> str:
        """The key of the cells that name the rows."""
        return next(iter(self.headings))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prose:
    """A claim outside tables, word for word; ``check`` names the rule that judges it, ``facts`` its arguments."""

    text: str
    source: str
    date: str
    check: str
    facts: Mapping[str, Any]


@cache
def claims() -> Mapping[str, ClaimTable]:
    """All claimed tables by name."""
    return {name: _table(table) for name, table in _body().items() if name != "prose"}


@cache
def prose() -> tuple[Prose, ...]:
    """All claims outside tables, text by text, in order."""
    own = ("text", "source", "date", "check")
    return tuple(
        Prose(**{key: each[key] for key in own}, facts={key: value for key, value in each.items() if key not in own})
        for each in _body()["prose"]
    )


@cache
def _body() -> dict[str, Any]:
    return tomllib.loads((files("quantbench.claims") / "claims.toml").read_text(encoding="utf-8"))


def _table(table: Mapping[str, Any]) -> ClaimTable:
    headings = table["headings"]
    rows = tuple(
        ClaimRow(
            variant=each["variant"],
            cells={key: each[key] for key in headings},
            earlier=tuple(EarlierText(**found) for found in each.get("earlier", ())),
        )
        for each in table["rows"]
    )
    return ClaimTable(**{**table, "rows": rows})
