"""The latency pass: rounds of fixed-length answers, alternating with short rounds of the anchor.

Between fresh processes the raw figure moves by 3 to 15 %; the ratio to an anchor in the same process by 1 to 2 %.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from quantbench.errors import ModelError
from quantbench.methods import LoadedModel
from quantbench.scenario import Effort
from quantbench.statistics import median_interval
from quantbench.trace import Generation, Round

_ANCHOR_SHARE = 0.25
"""At most this share of the time goes to the anchor."""

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A loaded model with the prompts that it answers."""

    model: LoadedModel
    prompts: Prompts

    def answer(self, index: int, length: int) -> Generation:
        """One timed answer to one of its prompts."""
        return timed_answer(self.model, index, self.prompts[index], length)


def measure_rounds(variant: Contender, anchor: Contender | None, length: int, effort: Effort) -> tuple[Round, ...]:
    """Timed rounds, until the median's confidence interval is narrow enough or the budget is spent.

    The other passes came before and warmed the variant up; one answer each warms what is left.
    """
    variant.answer(0, length)
    turn = AnchorTurn(anchor, length) if anchor else None
    rounds: list[Round] = []
    deadline = time.perf_counter() + effort.budget_s
    gc.collect()
    gc.disable()
    try:
        while not _done(rounds, effort, deadline):
            answers = timed_round(variant.model, variant.prompts, length)
            opposite = turn.take(sum(answer.e2e_s for answer in answers)) if turn else ()
            rounds.append(Round(index=len(rounds), variant=answers, anchor=opposite))
    finally:
        gc.enable()
    return tuple(rounds)


class AnchorTurn:
    """The anchor's part of each round: prompts in rotation, while its total time keeps to its share of all time."""

    def __init__(self, anchor: Contender, length: int) -> None:
        """Two answers warm the anchor up and tell what one takes."""
        self._anchor = anchor
        self._length = length
        anchor.answer(0, length)
        self._costs_s = {0: anchor.answer(0, length).e2e_s}
        self._next = 0
        self._balance_s = 0.0

    def take(self, variant_s: float) -> tuple[Generation, ...]:
        """Answers after a variant's round of ``variant_s``; at least one after the first round, perhaps none later."""
        self._balance_s += variant_s * _ANCHOR_SHARE / (1 - _ANCHOR_SHARE)
        answers: list[Generation] = []
        while len(answers) < len(self._anchor.prompts):
            prompt = self._next % len(self._anchor.prompts)
            expected_s = self._costs_s.get(prompt, max(self._costs_s.values()))
            if self._next and expected_s > self._balance_s:
                break
            answer = self._anchor.answer(prompt, self._length)
            self._next += 1
            self._costs_s[prompt] = answer.e2e_s
            self._balance_s -= answer.e2e_s
            answers.append(answer)
        return tuple(answers)


def timed_round(model: LoadedModel, prompts: Prompts, length: int) -> tuple[Generation, ...]:
    """Answer every prompt once with exactly ``length`` tokens."""
    return tuple(timed_answer(model, index, prompt, length) for index, prompt in enumerate(prompts))


def timed_answer(model: LoadedModel, index: int, prompt: Sequence[int], length: int) -> Generation:
    """One answer; the clock is read at each token, the device synchronized at the edges of the phases."""
    clock = time.perf_counter
    stamps = [0.0] * length
    model.synchronize()
    tokens = model.generate(prompt, length)
    started = clock()
    next(tokens)
    model.synchronize()
    stamps[0] = clock()
    for position, _ in enumerate(tokens, start=1):
        stamps[position] = clock()
    model.synchronize()
    ended = clock()
    if not stamps[-1]:
        raise ModelError(f"the method stopped before {length} tokens; its generate() must go on past the end of sequence")
    return Generation(
        prompt=index,
        prompt_tokens=len(prompt),
        prefill_s=stamps[0] - started,
        gaps_s=tuple(after - before for before, after in pairwise(stamps)),
        e2e_s=ended - started,
    )


def _done(rounds: Sequence[Round], effort: Effort, deadline: float) -> bool:
    if len(rounds) < effort.min_rounds:
        return False
    if len(rounds) >= effort.max_rounds or time.perf_counter() >= deadline:
        return True
    totals = sorted(sum(answer.e2e_s for answer in each.variant) for each in rounds)
    interval = median_interval(totals)
    if interval is None:
        return False
    low, high = interval
    return high - low <= 2 * effort.precision * totals[len(totals) // 2]
