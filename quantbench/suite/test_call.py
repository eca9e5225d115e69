"""Calls of modules without tokens: one entry per scenario, in seconds per call."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from quantbench.plugin import Measured


@pytest.mark.quantbench_reads("inputs")
def test_call(quantbench: Measured) -> None:
    """Mean time of one call on a seeded input, one sample a round."""
    quantbench.replay(lambda trace: [fmean(each.variant) for each in trace.calls])
