"""What the checks share: a result with its limit, and two pieces of work that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

T = TypeVar("T")
Pairs = tuple[list[float], list[float]]
"""Ours and the bare figures, in pairs."""


class CannotRunError(Exception):
    """A check lacks something on this machine; the sentence says what to do."""


@dataclass(frozen=True, slots=True)
class Result:
    """One figure with what it is compared with; ``limit`` such as ``<= 1.3`` is checked against ``figure``."""

    name: str
    ours: str
    bare: str
    figure: float
    limit: str

    @property
    def holds(self) -> bool:
        """Whether the figure keeps its limit."""
        sign, bound = self.limit.split()
        return self.figure <= float(bound) if sign == "<=" else self.figure >= float(bound)


def in_turn(ours: Callable[[], T], bare: Callable[[], T], *, pairs: int) -> tuple[list[T], list[T]]:
    """What both give, in pairs; which comes first changes from pair to pair."""
    found: tuple[list[T], list[T]] = ([], [])
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            found[side].append((ours, bare)[side]())
    return found


def seconds_in_turn(ours: Callable[[], object], bare: Callable[[], object], *, pairs: int) -> Pairs:
    """Seconds that both take, in pairs, after one untimed call of each."""

    def seconds(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    ours()
    bare()
    return in_turn(lambda: seconds(ours), lambda: seconds(bare), pairs=pairs)


def time_ratio(name: str, seconds: Pairs, limit: str) -> Result:
    """Our time over the bare one: the median over pairs."""
    return _ratio(name, seconds, limit, "s")


def speed_ratio(name: str, rates: Pairs, limit: str) -> Result:
    """Our tokens/s over the bare ones: the median over pairs."""
    return _ratio(name, rates, limit, "tok/s")


def _ratio(name: str, figures: Pairs, limit: str, unit: str) -> Result:
    ratio = median(ours / bare for ours, bare in zip(*figures, strict=True))
    ours, bare = (f"{median(each):.4g} {unit}" for each in figures)
    return Result(name, ours, bare, ratio, limit)
