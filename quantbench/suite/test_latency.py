"""Prefill and decode: one entry per scenario and phase, in seconds per prompt and per token."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from quantbench.plugin import Measured


@pytest.mark.quantbench_tokens(True)
def test_prefill(quantbench: Measured) -> None:
    """Mean time to the first token, one sample a round."""
    quantbench.replay([fmean(answer.prefill_s for answer in each.variant) for each in quantbench.trace.rounds])


@pytest.mark.quantbench_tokens(True)
def test_decode(quantbench: Measured) -> None:
    """Mean time between tokens, one sample a round; pytest-benchmark's OPS is tokens per second."""
    quantbench.replay([fmean(gap for answer in each.variant for gap in answer.gaps_s) for each in quantbench.trace.rounds])
