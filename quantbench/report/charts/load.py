"""Servers under load: throughput of all answers by the number of requests at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantbench.core.text import visible
from quantbench.core.units import significant
from quantbench.report.charts.look import Json, Look, layer, nominal, quantitative, series
from quantbench.tables.fields import BESIDE_OTHER_WORK
from quantbench.tables.kinds.served import rates

if TYPE_CHECKING:
    from quantbench.results.rows import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A served variant: tokens/s of all answers together, by requests at once."""

    name: str
    tps: Mapping[int, float]


def served(group: Group) -> list[Served]:
    """The variants of a group that were asked for several answers at once, with a sign where other work disturbed them."""
    found = [(row, rates(row)) for row in group.rows if row.ok]
    return [
        Served(name=row.label + (BESIDE_OTHER_WORK if row.flag("disturbed") else ""), tps=tps) for row, tps in found if tps
    ]


def chart(variants: Sequence[Served], look: Look) -> Json | None:
    """A line for each variant over requests at once, each number as far from the next as from the last; None without any."""
    if not variants:
        return None
    rows = [
        {"name": visible(each.name), "requests": requests, "tps": tps, "value": significant(tps)}
        for each in variants
        for requests, tps in each.tps.items()
    ]
    names = sorted(visible(each.name) for each in variants)
    colours, shapes = series(names, look.ink)
    legend = {
        "title": None, "orient": "bottom", "columns": look.from_width(500, 4, 2), "symbolOpacity": 1, "rowPadding": 5,
    }  # fmt: skip
    ends = [0, 1.1 * max(tps for each in variants for tps in each.tps.values())]
    requests = {"field": "requests", "type": "ordinal", "title": "Requests at once"}
    together = quantitative(
        "tps", title="Together, tokens/s", scale={"domain": ends, "nice": False}, axis={"tickCount": 5, "format": "~f"}
    )
    encoding = {
        "x": {**requests, "axis": {"labelAngle": 0, "grid": False}},
        "y": together,
        "color": nominal("name", legend=legend, scale={"domain": names, "range": colours}),
        "shape": nominal("name", legend=legend, scale={"domain": names, "range": shapes}),
        "tooltip": [nominal("name", title="Variant"), requests, nominal("value", title="Tokens/s together")],
    }
    return {
        "data": {"values": rows},
        "layer": [
            layer("line", {"strokeWidth": 1.8}, encoding),
            layer("point", {"filled": True, "size": 60, "opacity": 1}, encoding),
        ],
        "width": look.width,
        "height": 230,
        "description": "Throughput of each served variant by the number of requests at once",
    }
