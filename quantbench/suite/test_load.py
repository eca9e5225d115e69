"""Loading: one entry per scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantbench.plugin import Measured


def test_load(quantbench: Measured) -> None:
    """Time to open the model, files in the page cache."""
    quantbench.replay([quantbench.trace.load_s])
