"""How charts are drawn: their size, their colours, light and dark, and the ticks of log scales.

A chart takes its colours by name from an Ink. On a page they are CSS variables, so that one chart suits both schemes; in a
picture they are the light ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from quantbench.core.text import visible

if TYPE_CHECKING:
    from quantbench.results.rows import Group

Json = Mapping[str, Any]
"""A chart, or a part of one, in Vega-Lite's own words: they are written here as they are, and the tests hold them against its
schema. Altair's objects for them took a third of the time of a page."""

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"

Ink = Callable[[str], str]
"""Turns the name of a colour into what a chart's specification holds."""

LIGHT: Mapping[str, str] = {
    "page": "#ffffff", "panel": "#f5f7fa", "ink": "#171b22", "muted": "#566072", "line": "#d8dee8", "faint": "#c3cbd8",
    "accent": "#0a62c4", "soft": "#e4effc", "warn": "#9a5b00", "warn-soft": "#fdf1dc", "bad": "#b3261e",
    "added": "#d3f2dc", "added-ink": "#0c5a2a", "removed": "#fde0dd", "removed-ink": "#8c1d18",
    "series-0": "#0a62c4", "series-1": "#c2570c", "series-2": "#0f7b4f", "series-3": "#b3261e", "series-4": "#7a3fb5",
    "series-5": "#8a6d00", "series-6": "#0b7f8c", "series-7": "#b0327c", "series-8": "#5a6472", "series-9": "#4b7d1c",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "page": "#0f1319", "panel": "#171d26", "ink": "#e8ecf2", "muted": "#a0abbb", "line": "#2b3442", "faint": "#455164",
    "accent": "#6cb2ff", "soft": "#16283f", "warn": "#f0b95b", "warn-soft": "#2d2411", "bad": "#ff8a80",
    "added": "#123d24", "added-ink": "#9be7b5", "removed": "#4a1a18", "removed-ink": "#ffb4ac",
    "series-0": "#6cb2ff", "series-1": "#ff9f5a", "series-2": "#4fd39a", "series-3": "#ff8a80", "series-4": "#c79bf2",
    "series-5": "#e3c14a", "series-6": "#4fcbd8", "series-7": "#f48fc4", "series-8": "#a9b4c4", "series-9": "#a2d164",
}  # fmt: skip
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
SHAPES = (
    "circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left",
    "M0,-1L0.95,-0.31L0.59,0.81L-0.59,0.81L-0.95,-0.31Z", "M-1,-0.35L1,-0.35L1,0.35L-1,0.35Z",
)  # fmt: skip
"""Distinct without colours too; the last two are a pentagon and a bar."""
_SERIES = 10
_STEPS = {0.7: (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0), 1.5: (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), 3.0: (1.0, 2.0, 5.0)}
"""Ticks of a log scale within a power of ten, by how many powers of ten the scale has at most; beyond that only the powers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a chart is drawn: its width in pixels or that of its container, and where its colours come from.

    ``height`` in pixels applies to size against KLD; other charts are as tall as their variants need.
    """

    width: int | Literal["container"]
    ink: Ink
    height: int = 430

    def from_width(self, least: int, wide: int, narrow: int) -> Any:
        """``wide`` if the chart is at least ``least`` pixels wide, else ``narrow``; in a container known only once drawn."""
        if self.width == "container":
            return {"expr": f"width >= {least} ? {wide} : {narrow}"}
        return wide if self.width >= least else narrow


def log_ticks(low: float, high: float) -> list[float]:
    """Where a log scale from ``low`` to ``high`` has its ticks."""
    powers = math.log10(high / low)
    steps = next((steps for most, steps in _STEPS.items() if powers <= most), (1.0,))
    every = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{power}") for power in every for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def subject(group: Group) -> str:
    """The model and prompts of a group as a title; an instrument check is called one."""
    check = " (an instrument check)" if group.instrument_check else ""
    return visible(f"{group.model}{check}, prompts {group.prompts}")


def on_page(name: str) -> str:
    """The CSS variable of a colour."""
    return f"var(--{name})"


def on_paper(name: str) -> str:
    """The light colour."""
    return LIGHT[name]


def series(names: Iterable[str], ink: Ink) -> tuple[list[str], list[str]]:
    """Colours and shapes for the sorted ``names``; after ten they repeat."""
    count = len(list(names))
    return [ink(f"series-{index % _SERIES}") for index in range(count)], [SHAPES[index % _SERIES] for index in range(count)]


def quantitative(field: str, **more: Any) -> dict[str, Any]:
    """A channel that shows a figure; ``more`` are its title, axis, scale."""
    return {"field": field, "type": "quantitative", **more}


def nominal(field: str, **more: Any) -> dict[str, Any]:
    """A channel that shows a text."""
    return {"field": field, "type": "nominal", **more}


def label_axis(ink: Ink) -> Json:
    """The axis of the names of variants, without lines."""
    return {"ticks": False, "domain": False, "labelLimit": 170, "labelColor": ink("ink")}


def layer(kind: str, mark: Json, encoding: Json, where: str = "", **more: Any) -> dict[str, Any]:
    """Marks of one kind for the rows for which an expression holds, or for all."""
    chosen = {"transform": [{"filter": where}]} if where else {}
    return {"mark": {"type": kind, **mark}, "encoding": dict(encoding), **chosen, **more}


def specification(chart: Json, ink: Ink) -> dict[str, Any]:
    """A chart with the look that all share."""
    return {"$schema": _SCHEMA, **chart, "config": config(ink)}


def config(ink: Ink) -> dict[str, Any]:
    """The look that all charts share."""
    words = {"labelColor": ink("muted"), "titleColor": ink("muted"), "labelFont": FONT, "titleFont": FONT}
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            **words, "gridColor": ink("line"), "domainColor": ink("faint"), "tickColor": ink("faint"),
            "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 8,
        },
        "legend": {**words, "labelFontSize": 12, "labelColor": ink("ink"), "symbolSize": 70, "symbolStrokeWidth": 1.5},
        "text": {"color": ink("ink"), "font": FONT},
        "title": {"color": ink("ink"), "subtitleColor": ink("muted"), "font": FONT, "subtitleFont": FONT, "anchor": "start"},
    }  # fmt: skip
