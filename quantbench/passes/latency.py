"""The latency pass: rounds of fixed-length answers, alternating with short rounds of the anchor.

Between fresh processes the raw figure moves more than the ratio to an anchor in the same process: bench/harness/README.md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from quantbench.errors import ModelError
from quantbench.methods import LoadedModel
from quantbench.passes._rounds import ANCHOR_SHARE, AnchorTurn, until_steady
from quantbench.scenario import Effort
from quantbench.trace import Generation, Round

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A loaded model with the prompts that it answers; ``said`` keeps its last greedy answer to each."""

    model: LoadedModel
    prompts: Prompts
    said: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def answer(self, index: int, length: int) -> Generation:
        """One timed answer to one of its prompts."""
        answer, self.said[index] = timed_answer(self.model, index, self.prompts[index], length)
        return answer


def measure_rounds(variant: Contender, anchor: Contender | None, length: int, effort: Effort) -> tuple[Round, ...]:
    """Timed rounds, until the median's confidence interval is narrow enough or the budget is spent.

    A round answers every prompt once; where that would take too long for the rounds that an interval takes, a round answers
    some prompts in rotation, and it ends when every prompt had as many turns. The other passes came before and warmed
    the variant up; one answer each warms what is left.
    """
    size = _round_size(variant.answer(0, length).e2e_s, len(variant.prompts), effort)
    sweep = len(variant.prompts) // size
    turn = None
    if anchor:
        prompts = len(anchor.prompts)
        turn = AnchorTurn(partial(anchor.answer, length=length), prompts, _seconds, most=prompts)

    def take(index: int) -> Round:
        numbers = sorted((index * size + offset) % len(variant.prompts) for offset in range(size))
        answers = tuple(variant.answer(number, length) for number in numbers)
        opposite = turn.take(sum(map(_seconds, answers)), numbers) if turn else ()
        return Round(index=index, variant=answers, anchor=opposite)

    return until_steady(take, lambda each: sum(map(_seconds, each.variant)), effort, every=sweep)


def _round_size(answer_s: float, prompts: int, effort: Effort) -> int:
    """Prompts of one round, such that the fewest rounds take about the budget, the anchor's share included.

    It divides their number, so that all are answered equally often.
    """
    affordable = max(1, round(effort.budget_s * (1 - ANCHOR_SHARE) / effort.min_rounds / answer_s))
    return max(size for size in range(1, prompts + 1) if prompts % size == 0 and size <= affordable)


def timed_answer(
    model: LoadedModel, index: int, prompt: Sequence[int], length: int
) -> tuple[Generation, tuple[int, ...]]:
    """One greedy answer and its ids; the clock is read at each token, the device synchronized at the edges of the phases."""
    clock = time.perf_counter
    stamps = [0.0] * length
    ids = [0] * length
    model.synchronize()
    tokens = model.generate(prompt, length)
    started = clock()
    ids[0] = next(tokens)
    model.synchronize()
    stamps[0] = clock()
    for position, token in enumerate(tokens, start=1):
        stamps[position] = clock()
        ids[position] = token
    model.synchronize()
    ended = clock()
    if not stamps[-1]:
        raise ModelError(f"the method stopped before {length} tokens; its generate() must go on past the end of sequence")
    answer = Generation(
        prompt=index,
        prompt_tokens=len(prompt),
        prefill_s=stamps[0] - started,
        gaps_s=tuple(after - before for before, after in pairwise(stamps)),
        e2e_s=ended - started,
    )
    return answer, tuple(ids)


def _seconds(answer: Generation) -> float:
    return answer.e2e_s
