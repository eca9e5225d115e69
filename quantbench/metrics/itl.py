"""The time between tokens as comparisons of runs use it: the figure that varies least between fresh processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from quantbench.core.record import Column, Gate, Missing, Value
from quantbench.core.trace import Generation, Reference, Trace
from quantbench.metrics import metric

_SOURCE = "quantbench; bench/harness/README.md has its spread between processes"
_COLUMNS = (
    Column(
        "itl_s", "s", "lower", timed=True, gate=Gate(name="decode", ratio="itl_ratio"),
        doc="inter-token latency: time between two tokens; median",
        formula="median of t(i+1) - t(i) over all answers", source=_SOURCE,
    ),
    Column(
        "itl_ratio", "ratio", "higher", timed=True, doc="decode speed over the anchor's of the same process, by single gaps",
        formula="median of the same over all answers of the anchor / itl_s", source=_SOURCE,
    ),
)  # fmt: skip


@metric(*_COLUMNS)
def itl(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Median time between tokens, raw and over the anchor's: what comparisons of runs gate on"""
    if not trace.rounds:
        none = Missing(trace.absent.get("rounds", "no answers were timed"))
        return dict.fromkeys(("itl_s", "itl_ratio"), none)
    answers = [answer for each in trace.rounds for answer in each.variant]
    if any(answer.tokens != (len(answer.gaps_s) + 1) * answer.batch for answer in answers):
        return dict.fromkeys(("itl_s", "itl_ratio"), Missing("several tokens came at once, with no time between them"))
    own = _middle(answers)
    anchors = [answer for each in trace.rounds for answer in each.anchor]
    none = Missing(trace.absent.get("anchor", "no anchor could be had for this runtime here"))
    return {"itl_s": own, "itl_ratio": _middle(anchors) / own if anchors else none}


def _middle(answers: Sequence[Generation]) -> float:
    return median(seconds for answer in answers for seconds in answer.gaps_s)
