"""Loading: one entry per scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from quantbench.plugin import Measured


def test_load(quantbench: Measured) -> None:
    """Time to open the model, files in the page cache."""
    load_s = quantbench.trace.load_s
    if load_s is None:
        pytest.skip(quantbench.trace.absent["load_s"])
    quantbench.replay([load_s])
