"""Size against KLD: one point per variant, the front joined, the pick ringed, the limit a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from quantbench.core.text import visible
from quantbench.core.units import GB
from quantbench.report.charts.labels import LabelPlace, TextAnchor, is_free, place
from quantbench.report.charts.look import Json, Look, layer, log_ticks, nominal, quantitative, series
from quantbench.report.charts.points import Point, on_front, tooltip

_NARROW, _WIDE = 270, 760
"""Pixels of a page's chart for which labels are placed: a phone for the front and the pick, a desktop for the others."""

_LIMIT = "limit {:.2g} nats"
_LIMIT_PLACES = ((LabelPlace(2, -9, "left"), 0.0), (LabelPlace(-2, -9, "right"), 1.0))
"""Where the limit's label may go, and at which end of its line."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A point that a log scale can show: its size in the chart's unit, its KLD and the interval of that, in nats."""

    point: Point
    size: float
    kld: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Plot:
    """What is drawn, and on which scales."""

    spots: Sequence[Spot]
    unit: str
    limit: float | None
    look: Look

    @cached_property
    def across(self) -> tuple[float, float]:
        """Ends of the scale of sizes, with a margin of 15 %."""
        return min(spot.size for spot in self.spots) / 1.15, max(spot.size for spot in self.spots) * 1.15

    @cached_property
    def up(self) -> tuple[float, float]:
        """Ends of the scale of KLD, with a margin of a factor of 2."""
        limits = [self.limit] if self.limit else []
        return min([*limits, *(spot.low for spot in self.spots)]) / 2, max([*limits, *(spot.high for spot in self.spots)]) * 2

    @cached_property
    def anchors(self) -> list[TextAnchor]:
        """Where the points are, as shares of the width and the height."""
        return [(_share(spot.size, self.across), 1 - _share(spot.kld, self.up)) for spot in self.spots]

    @property
    def widths(self) -> tuple[int, int]:
        """The least width in pixels, and the one at which all labels show."""
        return (_NARROW, _WIDE) if self.look.width == "container" else (self.look.width, self.look.width)

    @cached_property
    def limit_place(self) -> tuple[LabelPlace, TextAnchor] | None:
        """Where the label of the limit stands, at the end of its line where no point is in the way; None without a limit."""
        if not self.limit:
            return None
        level, length = 1 - _share(self.limit, self.up), len(_LIMIT.format(self.limit))
        found = [(at, (end, level)) for at, end in _LIMIT_PLACES]
        free = (pair for pair in found if is_free(self.anchors, pair, length, width=self.widths[0], height=self.look.height))
        return next(free, found[-1])

    def places(self) -> tuple[dict[int, LabelPlace], dict[int, LabelPlace]]:
        """Places of labels by number of the spot: those that fit a narrow chart, and with these those that fit a wide one."""
        names = {index: spot.point.name for index, spot in enumerate(self.spots)}
        best = on_front([spot.point for spot in self.spots])
        picked = [index for index, spot in enumerate(self.spots) if spot.point.role == "pick"]
        first = [*picked, *(index for index, spot in enumerate(self.spots) if spot.point.role or names[index] in best)]
        anchors, settled = list(self.anchors), dict[int, LabelPlace]()
        if self.limit_place:
            settled[len(anchors)] = self.limit_place[0]
            names[len(anchors)] = _LIMIT.format(self.limit)
            anchors.append(self.limit_place[1])
        order = dict.fromkeys([*settled, *first])
        height, (least, room) = self.look.height, self.widths
        narrow = place(anchors, {index: names[index] for index in order}, width=least, height=height, settled=settled)
        order = dict.fromkeys([*narrow, *first, *names])
        wide = place(anchors, {index: names[index] for index in order}, width=room, height=height, settled=narrow)
        return narrow, wide


def pareto(variants: Sequence[Point], limit: float | None, look: Look) -> Json | None:
    """KLD over weights, both on log scales, with ``limit`` as a line; None where no point fits a log scale."""
    spots = _spots(variants)
    if not spots:
        return None
    plot = Plot(spots=spots, unit="GB" if _scale(variants) == GB else "MB", limit=limit, look=look)
    rows = _rows(plot)
    base = {
        "x": quantitative(
            "x", title=f"Weights as loaded, {plot.unit}", scale={"type": "log", "domain": plot.across, "nice": False},
            axis={"values": log_ticks(*plot.across), "format": "~g", "grid": False, "labelOverlap": "greedy"},
        ),
        "y": quantitative(
            "y", title="Mean KLD against the reference, nats", scale={"type": "log", "domain": plot.up, "nice": False},
            axis={"values": log_ticks(*plot.up), "labelExpr": "format(datum.value, datum.value < 0.001 ? '~e' : '~g')"},
        ),
    }  # fmt: skip
    return {
        "data": {"values": rows},
        "layer": [*_limit_line(plot), *_points(base, rows, look), *_labels(base, look)],
        "width": look.width,
        "height": look.height,
        "description": "Mean KL divergence over the size of the weights, one point each",
    }


def _scale(variants: Sequence[Point]) -> int:
    return GB if max(each.weight_bytes or 0 for each in variants) >= GB else 10**6


def _spots(variants: Sequence[Point]) -> list[Spot]:
    spots = []
    for each in variants:
        size, kld, low, high = each.weight_bytes, each.kld, each.kld_low, each.kld_high
        if size and kld is not None and kld > 0:
            spots.append(Spot(each, size / _scale(variants), kld, low if low and low > 0 else kld, high or kld))
    return spots


def _rows(plot: Plot) -> list[dict[str, Any]]:
    """One row per spot, with the place of its label."""
    narrow, wide = plot.places()
    best = on_front([spot.point for spot in plot.spots])
    rows = []
    for index, spot in enumerate(plot.spots):
        point = spot.point
        row: dict[str, Any] = {
            "x": spot.size, "y": spot.kld, "low": spot.low, "high": spot.high, "name": visible(point.name),
            "method": visible(point.method), "role": point.role, "front": point.name in best, **point.texts,
        }  # fmt: skip
        if at := wide.get(index):
            row |= {"dx": at.dx, "dy": at.dy, "align": at.align, "always": index in narrow}
        rows.append(row)
    return rows


def _share(value: float, ends: tuple[float, float]) -> float:
    return math.log(value / ends[0]) / math.log(ends[1] / ends[0])


def _limit_line(plot: Plot) -> list[Json]:
    if not plot.limit_place:
        return []
    ink, (at, anchor) = plot.look.ink, plot.limit_place
    line = {"y": quantitative("y")}
    told = {**line, "x": {"value": "width" if anchor[0] else 0}, "text": nominal("text")}
    words = {"align": at.align, "baseline": "middle", "dx": at.dx, "dy": at.dy, "fontSize": 11}
    own: dict[str, Any] = {"data": {"values": [{"y": plot.limit, "text": _LIMIT.format(plot.limit)}]}}
    return [
        layer("rule", {"strokeDash": [5, 4], "strokeWidth": 1.2, "color": ink("bad")}, line, **own),
        layer("text", {**words, **_halo(plot.look)}, told, **own),
        layer("text", {**words, "fill": ink("bad")}, told, **own),
    ]


def _points(base: Json, rows: Sequence[dict[str, Any]], look: Look) -> list[Json]:
    ink = look.ink
    names = sorted({row["method"] for row in rows})
    colours, shapes = series(names, ink)
    columns = look.from_width(500, 6, 3)
    legend = {"title": None, "orient": "bottom", "columns": columns, "symbolOpacity": 1, "rowPadding": 5}
    colour = nominal("method", legend=legend, scale={"domain": names, "range": colours})
    shape = nominal("method", legend=legend, scale={"domain": names, "range": shapes})
    point = {**base, "color": colour, "shape": shape, "tooltip": tooltip()}
    interval = {**base, "y": quantitative("low"), "y2": {"field": "high"}, "color": colour}
    ring = {"shape": "circle", "size": 330, "strokeWidth": 2, "color": ink("accent"), "filled": False}
    return [
        layer("line", {"interpolate": "step-after", "strokeWidth": 1.5, "color": ink("faint")}, base, "datum.front"),
        layer("rule", {"strokeWidth": 1, "opacity": 0.55}, interval),
        layer("point", {"filled": False, "strokeWidth": 1.6, "size": 50, "fill": ink("page")}, point),
        layer("point", {"filled": True, "size": 70, "opacity": 1}, point, "datum.front"),
        layer("point", ring, base, "datum.role == 'pick'"),
    ]


def _labels(base: Json, look: Look) -> list[Json]:
    """The names beside the points; those that a narrow chart has no room for are drawn in a wide one only."""
    shown = {"expr": f"datum.always || width >= {_WIDE} ? 1 : 0"} if look.width == "container" else 1
    at: dict[str, Any] = {
        "dx": {"expr": "datum.dx"}, "dy": {"expr": "datum.dy"}, "align": {"expr": "datum.align"},
        "baseline": "middle", "fontSize": 11, "opacity": shown, "fontWeight": {"expr": "datum.role == 'pick' ? 700 : 400"},
    }  # fmt: skip
    named, where = {**base, "text": nominal("name")}, "isValid(datum.align)"
    return [layer("text", {**at, **_halo(look)}, named, where), layer("text", {**at, "fill": look.ink("ink")}, named, where)]


def _halo(look: Look) -> dict[str, Any]:
    """A halo that keeps text legible over lines."""
    return {"stroke": look.ink("page"), "strokeWidth": 3.5, "strokeJoin": "round", "fill": look.ink("page")}
