"""Shared by all timed rounds: when they stop, and how much of the time goes to the anchor."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from quantbench.core.scenario import Effort
from quantbench.core.statistics import median_interval

ANCHOR_SHARE = 0.25
"""At most this share of the time goes to the anchor."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rotation:
    """Which of ``prompts`` prompts each round answers: ``size`` of them in turn, a divisor, so that all have equal turns."""

    prompts: int
    size: int

    @property
    def sweep(self) -> int:
        """Rounds in which every prompt has one turn."""
        return self.prompts // self.size

    def at(self, index: int) -> list[int]:
        """The prompts of the round with that index, ascending."""
        return sorted((index * self.size + offset) % self.prompts for offset in range(self.size))


def rotation(answer_s: float, prompts: int, effort: Effort) -> Rotation:
    """Prompts a round, at ``answer_s`` each, such that the fewest rounds take about the budget, the anchor's share included."""
    affordable = max(1, round(effort.budget_s * (1 - ANCHOR_SHARE) / effort.min_rounds / answer_s))
    size = max(size for size in range(1, prompts + 1) if prompts % size == 0 and size <= affordable)
    return Rotation(prompts=prompts, size=size)


def until_steady(
    take: Callable[[int], T],
    seconds: Callable[[T], float],
    effort: Effort,
    *,
    every: int = 1,
    spoilt: Callable[[], bool] = lambda: False,
) -> tuple[T, ...]:
    """Rounds until the median's confidence interval is narrow enough or the budget is spent.

    ``take`` runs the round of an index; ``seconds`` says how long the variant's part of it took. The number of rounds is a
    multiple of ``every``. Where other work has ``spoilt`` them, only the budget counts: the first round that reaches it is the
    last, however few there are. Garbage is collected before, and not during the rounds.
    """
    rounds: list[T] = []
    deadline = time.perf_counter() + effort.budget_s
    gc.collect()
    gc.disable()
    try:
        while len(rounds) % every or not _done([seconds(each) for each in rounds], effort, deadline):
            rounds.append(take(len(rounds)))
            if time.perf_counter() >= deadline and spoilt():
                break
    finally:
        gc.enable()
    return tuple(rounds)


class AnchorTurn(Generic[T]):
    """The anchor's part of each round: its inputs in rotation, with its total time kept to its share of all time."""

    def __init__(self, answer: Callable[[int], T], inputs: int, seconds: Callable[[T], float], *, most: int) -> None:
        """``answer`` takes the index of an input; two answers warm the anchor up. A turn has at most ``most`` answers."""
        self._answer = answer
        self._inputs = inputs
        self._most = most
        self._seconds = seconds
        answer(0)
        self._costs_s = {0: seconds(answer(0))}
        self._next = 0
        self._balance_s = 0.0

    def take(self, variant_s: float, among: Sequence[int] | None = None) -> tuple[T, ...]:
        """Answers after a variant's round of ``variant_s``, to the inputs with indices ``among`` these (default: any).

        At least one after the first round, perhaps none after a later one.
        """
        numbers = range(self._inputs) if among is None else among
        most = self._most if among is None else min(self._most, len(among))
        self._balance_s += variant_s * ANCHOR_SHARE / (1 - ANCHOR_SHARE)
        answers: list[T] = []
        while len(answers) < most:
            number = numbers[self._next % len(numbers)]
            expected_s = self._costs_s.get(number, max(self._costs_s.values()))
            if self._next and expected_s > self._balance_s:
                break
            answer = self._answer(number)
            self._next += 1
            self._costs_s[number] = self._seconds(answer)
            self._balance_s -= self._costs_s[number]
            answers.append(answer)
        return tuple(answers)


def _done(taken_s: Sequence[float], effort: Effort, deadline: float) -> bool:
    if len(taken_s) < effort.min_rounds:
        return False
    if len(taken_s) >= effort.max_rounds or time.perf_counter() >= deadline:
        return True
    interval = median_interval(taken_s)
    if interval is None:
        return False
    low, high = interval
    return high - low <= 2 * effort.precision * sorted(taken_s)[len(taken_s) // 2]
