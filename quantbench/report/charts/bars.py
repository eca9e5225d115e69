"""Decode speed of each variant with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantbench.core.text import visible
from quantbench.core.units import significant
from quantbench.report.charts.look import Json, Look, label_axis, layer, nominal, quantitative
from quantbench.report.charts.points import Point, tooltip

STEP = 19
"""Pixels from bar to bar."""


def bars(variants: Sequence[Point], look: Look) -> Json | None:
    """Decode throughput, the fastest first, with its 95 % interval where there is one; None where no speed was measured."""
    shown = sorted(((each.tps, each) for each in variants if each.tps is not None), key=lambda pair: (-pair[0], pair[1].name))
    if not shown:
        return None
    rows = [
        {
            "label": visible(each.name), "tps": tps, "end": each.tps_high or tps, "low": each.tps_low, "high": each.tps_high,
            "value": significant(tps) + each.mark, "role": each.role or "other", **each.texts,
        }
        for tps, each in shown
    ]  # fmt: skip
    ink = look.ink
    colours = {"pick": ink("accent"), "runner-up": ink("series-6"), "reference": ink("muted"), "other": ink("faint")}
    roles = {role: colour for role, colour in colours.items() if any(row["role"] == role for row in rows)}
    widest = max(each.tps_high or tps for tps, each in shown)
    where: Any = "top" if look.width == "container" else "bottom"  # in a picture charts stand side by side, with legends below
    legend = {
        "title": None, "orient": where, "symbolType": "square", "columns": look.from_width(320, 4, 2), "rowPadding": 4,
    }  # fmt: skip
    scale = {"domain": [0, widest * 1.2], "nice": False}
    speed = quantitative("tps", title="Decode, tokens/s", scale=scale, axis={"tickCount": 5, "format": "~f"})
    colour = nominal("role", legend=legend, scale={"domain": list(roles), "range": list(roles.values())})
    label = {"y": nominal("label", sort=None, title=None, axis=label_axis(ink))}
    return {
        "data": {"values": rows},
        "layer": [
            layer(
                "bar", {"height": {"band": 0.72}, "cornerRadiusEnd": 2},
                {**label, "x": speed, "color": colour, "tooltip": tooltip()},
            ),
            layer(
                "rule", {"strokeWidth": 1.6, "color": ink("ink")}, {**label, "x": quantitative("low"), "x2": {"field": "high"}},
                where="isValid(datum.low)",
            ),
            layer(
                "text", {"align": "left", "dx": 6, "fontSize": 11},
                {**label, "x": quantitative("end"), "text": nominal("value")},
            ),
        ],
        "width": look.width,
        "height": STEP * len(rows),
        "description": "Decode throughput of each variant, the fastest first",
    }  # fmt: skip
