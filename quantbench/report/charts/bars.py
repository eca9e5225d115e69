"""Decode speed of each variant with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quantbench.core.text import visible
from quantbench.core.units import significant
from quantbench.report.charts.look import data
from quantbench.report.charts.points import Point, tooltip

if TYPE_CHECKING:
    from quantbench.report.charts.look import Layered, Look

STEP = 19
"""Pixels from bar to bar."""


def bars(variants: Sequence[Point], look: Look) -> Layered | None:
    """Decode throughput, the fastest first, with its 95 % interval where there is one; None where no speed was measured."""
    import altair as alt

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
    base = alt.Chart(data(rows)).encode(
        y=alt.Y("label:N", sort=None, title=None).axis(ticks=False, domain=False, labelLimit=170, labelColor=ink("ink")),
    )
    where: Any = "top" if look.width == "container" else "bottom"  # in a picture charts stand side by side, with legends below
    legend = alt.Legend(title=None, orient=where, symbolType="square", columns=look.from_width(320, 4, 2), rowPadding=4)
    colour = alt.Color("role:N", legend=legend).scale(domain=list(roles), range=list(roles.values()))
    axis = alt.X("tps:Q", title="Decode, tokens/s").scale(domain=[0, widest * 1.2], nice=False).axis(tickCount=5, format="~f")
    layers = [
        base.mark_bar(height={"band": 0.72}, cornerRadiusEnd=2).encode(x=axis, color=colour, tooltip=tooltip()),
        base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.6, color=ink("ink")).encode(x="low:Q", x2="high:Q"),
        base.mark_text(align="left", dx=6, fontSize=11).encode(x="end:Q", text="value:N"),
    ]
    return alt.layer(*layers).properties(
        width=look.width, height=STEP * len(rows), description="Decode throughput of each variant, the fastest first"
    )
