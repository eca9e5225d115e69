"""The colours of a report, light and dark, and the look of its charts.

A chart takes its colours by name from an Ink. On a page they are CSS variables, so that one chart suits both schemes; in a
picture they are the light ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Ink = Callable[[str], str]
"""From the name of a colour to what a chart writes."""

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
"""Told apart without colours; the last two are a pentagon and a bar."""
_SERIES = 10


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
