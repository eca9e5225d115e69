"""Calls of modules without tokens: one entry per scenario, in seconds per call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from quantbench.suite.replay import PHASES

if TYPE_CHECKING:
    from quantbench.scenario_tests import Measured


@pytest.mark.quantbench_reads("inputs")
def test_call(quantbench: Measured) -> None:
    """Mean time of one call on a seeded input, one sample a round."""
    quantbench.replay(PHASES["call"])
