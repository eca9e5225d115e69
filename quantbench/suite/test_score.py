"""Scoring of running texts: one entry per scenario, in seconds per chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from quantbench.suite.replay import PHASES

if TYPE_CHECKING:
    from quantbench.scenario_tests import Measured


@pytest.mark.quantbench_reads("text")
def test_score(quantbench: Measured) -> None:
    """Time to read a chunk and to compare its second half with the reference, one sample a chunk."""
    quantbench.replay(PHASES["score"])
