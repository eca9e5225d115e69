"""The rows of the ``samples`` table: every raw number of a trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantbench.core.record import Sample
from quantbench.core.trace import Generation, Trace


def raw_samples(trace: Trace, stride: int) -> Iterable[Sample]:
    """Raw numbers; ``stride`` is the most gaps that an answer can have, so that a gap's index tells prompt and position."""
    for number, seconds in enumerate(trace.score_s):
        yield Sample("score", 0, number, seconds)
    for number, calls in enumerate(trace.calls):
        for phase, taken in (("call", calls.variant), ("anchor_call", calls.anchor)):
            yield from (Sample(phase, number, index, seconds) for index, seconds in enumerate(taken))
    for each in trace.rounds:
        for prefix, answers in (("", each.variant), ("anchor_", each.anchor)):
            yield from _round_samples(prefix, each.index, answers, stride)


def _round_samples(prefix: str, index: int, answers: Sequence[Generation], stride: int) -> Iterable[Sample]:
    for answer in answers:
        yield Sample(f"{prefix}prefill", index, answer.prompt, answer.prefill_s, answer.first_tokens)
        yield Sample(f"{prefix}e2e", index, answer.prompt, answer.e2e_s, answer.tokens)
        for position, gap in enumerate(answer.gaps_s):
            yield Sample(f"{prefix}gap", index, answer.prompt * stride + position, gap)
