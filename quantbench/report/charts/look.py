"""How charts are drawn: their size, where their colours come from, and the ticks of log scales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from quantbench.core.text import visible
from quantbench.report.charts.colours import Ink

if TYPE_CHECKING:
    import altair as alt

    from quantbench.results.rows import Group

    Layered = alt.LayerChart | alt.FacetChart
    """What altair's ``layer`` gives."""

_STEPS = {0.7: (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0), 1.5: (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), 3.0: (1.0, 2.0, 5.0)}
"""Ticks of a log scale within a power of ten, by how many powers of ten the scale has at most; of a longer one the powers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a chart is drawn: its width in pixels or that of its place, and where its colours come from.

    ``height`` in pixels is that of size against KLD; other charts are as high as their variants need.
    """

    width: int | Literal["container"]
    ink: Ink
    height: int = 430

    def from_width(self, least: int, wide: int, narrow: int) -> Any:
        """``wide`` where the chart has at least so many pixels, else ``narrow``; of its place that is known when drawn."""
        import altair as alt

        if self.width == "container":
            return alt.ExprRef(f"width >= {least} ? {wide} : {narrow}")
        return wide if self.width >= least else narrow


def log_ticks(low: float, high: float) -> list[float]:
    """Where a log scale from ``low`` to ``high`` has its ticks."""
    powers = math.log10(high / low)
    steps = next((steps for most, steps in _STEPS.items() if powers <= most), (1.0,))
    every = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{power}") for power in every for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def subject(group: Group) -> str:
    """What the figures of a group are of; an instrument check is called one."""
    check = " (an instrument check)" if group.instrument_check else ""
    return visible(f"{group.model}{check}, prompts {group.prompts}")
