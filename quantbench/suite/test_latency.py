"""Prefill and decode: one entry per scenario and phase, in seconds per prompt and per token."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

import pytest

from quantbench.metrics.latency import seconds_per_token

if TYPE_CHECKING:
    from quantbench.core.trace import Trace
    from quantbench.plugin import Measured


@pytest.mark.quantbench_reads("prompts")
def test_prefill(quantbench: Measured) -> None:
    """Mean time to the first token, one sample a round."""
    quantbench.replay(lambda trace: [fmean(answer.prefill_s for answer in each.variant) for each in trace.rounds])


@pytest.mark.quantbench_reads("prompts")
def test_decode(quantbench: Measured) -> None:
    """Mean time between tokens, one sample a round; pytest-benchmark's OPS is tokens per second."""
    if not _between_tokens(quantbench.trace):
        pytest.skip("answers came in one piece, so there is no time between tokens")
    quantbench.replay(_between_tokens)


def _between_tokens(trace: Trace) -> list[float]:
    return [seconds for each in trace.rounds if (seconds := seconds_per_token(each.variant))]
