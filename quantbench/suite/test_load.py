"""Loading: one entry per scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from quantbench.scenario_tests import Measured


def test_load(quantbench: Measured) -> None:
    """Time to open the model, files in the page cache."""
    if quantbench.trace.load_s is None:
        pytest.skip(quantbench.trace.absent["load_s"])
    quantbench.replay(lambda trace: [] if trace.load_s is None else [trace.load_s])
