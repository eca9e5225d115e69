"""The marks of claims, and the rules that derive them from figures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from quantbench.tables.table import Scalar

HOLDS = "holds"
ROUNDED = "holds when rounded"
RECIPE = "recipe has changed since"
OUTDATED = "not true today"
FAILS = "does not hold"
NOT_YET = "not measured yet"
NOT_HERE = "not measurable here"
MARKS = (HOLDS, ROUNDED, RECIPE, OUTDATED, FAILS, NOT_YET, NOT_HERE)
"""From best to worst, then those that say nothing about the claim."""

_MORE_DECIMALS = 2
"""A figure that still equals the claim with this many more decimals holds exactly, not just when rounded."""

_AMOUNT = re.compile(r"([0-9]{1,12}(?:\.([0-9]{1,9}))?)\s*(\w*)")
_MOST = 1e15
"""No claimed number is as large; beyond, Decimal has no digits left for the decimals."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What was planned or measured: the raw value in base units, and its text."""

    value: Scalar
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The mark of a claim, the figures it follows from, and the reason where the figures do not show it."""

    mark: str
    why: str = ""
    planned: Figure | None = None
    measured: Figure | None = None


@dataclass(frozen=True, slots=True)
class Amount:
    """A claimed number with its unit, and the decimals it was written with."""

    value: float
    unit: str
    decimals: int

    def mark(self, found: float) -> str:
        """HOLDS; ROUNDED where ``found`` matches only when rounded to the claim's decimals; else FAILS."""
        if self.is_rounded(found, _MORE_DECIMALS):
            return HOLDS
        return ROUNDED if self.is_rounded(found) else FAILS

    def is_rounded(self, found: float, more: int = 0) -> bool:
        """Whether ``found`` rounded to the claim's decimals, plus ``more``, is the claimed number."""
        if not abs(found) < _MOST:  # nor is one that is infinite or none
            return False
        step = Decimal(1).scaleb(-self.decimals - more)
        return Decimal(found).quantize(step, ROUND_HALF_UP) == Decimal(str(self.value))


def amount(text: str) -> Amount:
    """The number and unit of a text such as ``3.5GB`` or ``32bit``."""
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a number with a unit")
    return Amount(float(found[1]), found[3], len(found[2] or ""))


def worst(marks: Iterable[str]) -> str:
    """The worst of several marks."""
    return max(marks, key=MARKS.index)
