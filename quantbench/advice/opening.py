"""The decision as one line, for where only one line fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantbench.advice.decision import Choice


def opening(choice: Choice) -> str:
    """What to ship, with its figures; without the runner-up and the reasons."""
    return choice.sentence.partition("; ")[0]
