"""The latency pass: rounds of fixed-length answers, alternating with short rounds of the anchor.

Between fresh processes the raw figure varies more than its ratio to an anchor in the same process: bench/harness/README.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from quantbench.core.errors import ModelError
from quantbench.core.scenario import Effort
from quantbench.core.trace import Generation, Round
from quantbench.measuring.passes.rounds import AnchorTurn, rotation, until_steady
from quantbench.methods import Batched, LoadedModel

TimedPrompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A loaded model and its prompts, answered ``batch`` sequences together; ``last_answers`` keeps the ids by prompt index."""

    model: LoadedModel
    prompts: TimedPrompts
    batch: int = 1
    last_answers: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def answer(self, index: int, length: int) -> Generation:
        """One timed answer to one of its prompts."""
        answer, self.last_answers[index] = timed_answer(self.model, index, self.prompts[index], length, self.batch)
        return answer


def measure_rounds(
    variant: Contender,
    anchor: Contender | None,
    length: int,
    effort: Effort,
    *,
    after_round: Callable[[], None] = lambda: None,
    spoilt: Callable[[], bool] = lambda: False,
) -> tuple[Round, ...]:
    """Timed rounds, until the median's confidence interval is narrow enough or the budget is spent.

    A round answers every prompt once. Where that would leave too few rounds for an interval, each round answers some prompts in
    rotation, and the pass ends when every prompt had the same number of turns. The earlier passes warmed the variant up; one
    untimed answer warms the rest. ``after_round`` is called after each round, while nothing is timed. Once ``spoilt`` by other
    work the rounds end with the budget, perhaps before every prompt had a turn.
    """
    turns = rotation(variant.answer(0, length).e2e_s, len(variant.prompts), effort)
    turn = None
    if anchor:
        prompts = len(anchor.prompts)
        turn = AnchorTurn(partial(anchor.answer, length=length), prompts, _seconds, most=prompts)

    def take(index: int) -> Round:
        numbers = turns.at(index)
        answers = tuple(variant.answer(number, length) for number in numbers)
        after_round()
        opposite = turn.take(sum(map(_seconds, answers)), numbers) if turn else ()
        return Round(index=index, variant=answers, anchor=opposite)

    return until_steady(take, lambda each: sum(map(_seconds, each.variant)), effort, every=turns.sweep, spoilt=spoilt)


def together(prompt: Sequence[int], batch: int) -> list[list[int]]:
    """``batch`` prompts as long as ``prompt``: itself, then copies with the ids after the first rotated by one more place each.

    So all rows differ, and none needs padding.
    """
    first, rest = list(prompt[:1]), list(prompt[1:])
    turns = [row % len(rest) if rest else 0 for row in range(batch)]
    return [first + rest[turn:] + rest[:turn] for turn in turns]


def answer_tokens(model: LoadedModel, prompt: Sequence[int], length: int, batch: int) -> Iterator[int]:
    """The answer to ``prompt``, token by token; with a ``batch`` above 1, other sequences are answered together with it."""
    if batch == 1:
        return model.generate(prompt, length)
    assert isinstance(model, Batched)
    return (tokens[0] for tokens in model.generate_batch(together(prompt, batch), length))


def timed_answer(
    model: LoadedModel, index: int, prompt: Sequence[int], length: int, batch: int = 1
) -> tuple[Generation, tuple[int, ...]]:
    """One greedy answer and its ids; the clock is read at each token, and the device synchronized only at phase boundaries.

    ``batch`` sequences are answered together; the ids are those of the first.
    """
    clock = time.perf_counter
    stamps = [0.0] * length
    ids = [0] * length
    model.synchronize()
    tokens = answer_tokens(model, prompt, length, batch)
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
        raise ModelError(f"the method stopped before {length} tokens; its generate() must continue past the end of sequence")
    answer = Generation(
        prompt=index,
        prompt_tokens=len(prompt) * batch,
        prefill_s=stamps[0] - started,
        gaps_s=tuple(after - before for before, after in pairwise(stamps)),
        e2e_s=ended - started,
        batch=batch,
    )
    return answer, tuple(ids)


def _seconds(answer: Generation) -> float:
    return answer.e2e_s
