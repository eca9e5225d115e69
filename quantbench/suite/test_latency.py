"""Prefill and decode: one entry per scenario and phase, in seconds per prompt and per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from quantbench.suite.replay import PHASES

if TYPE_CHECKING:
    from quantbench.scenario_tests import Measured


@pytest.mark.quantbench_reads("prompts")
def test_prefill(quantbench: Measured) -> None:
    """Mean time to the first token, one sample a round."""
    quantbench.replay(PHASES["prefill"])


@pytest.mark.quantbench_reads("prompts")
def test_decode(quantbench: Measured) -> None:
    """Mean time between tokens, one sample a round; pytest-benchmark's OPS is tokens per second."""
    if quantbench.trace.rounds and not PHASES["decode"](quantbench.trace):
        pytest.skip("answers came in one piece, so there is no time between tokens")
    quantbench.replay(PHASES["decode"])
