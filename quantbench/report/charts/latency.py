"""How single durations are distributed: for each variant the exact quantiles of all samples, and some samples as dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantbench.core.text import visible
from quantbench.core.units import format_seconds
from quantbench.report.charts.look import Json, Look, label_axis, layer, log_ticks, nominal, quantitative
from quantbench.tables.fields import BESIDE_OTHER_WORK

if TYPE_CHECKING:
    import pandas as pd

    from quantbench.results.rows import Group

PHASES: Mapping[str, str] = {
    "prefill": "Prefill (the first token)",
    "gap": "Gaps between tokens",
    "call": "One call",
}
"""The phases shown, with their titles; the anchor's own rounds are not shown."""

_SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_KEYS = ("least", "low", "first", "middle", "third", "high", "most")
_STEP = 17
_MS = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """All durations of one variant in one phase: how many, the quantiles of _SHARES, and samples at even ranks; in seconds."""

    name: str
    count: int
    quantiles: tuple[float, ...]
    shown: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle quantile, in seconds."""
        return self.quantiles[_SHARES.index(0.5)]


def distributions(group: Group, samples: pd.DataFrame, phase: str, max_samples: int) -> list[Distribution]:
    """One for each measured variant with samples of ``phase`` that took time, the fastest first; repeats are pooled.

    Of more than ``max_samples`` samples that many are shown, at evenly spaced ranks that include the smallest and the largest.
    """
    chosen = samples[samples["phase"] == phase]
    by_scenario = {str(name): part for name, part in chosen.groupby("scenario_id", sort=False)["value_s"]}
    found = []
    for row in group.rows:
        values = by_scenario.get(row.text("scenario_id")) if row.ok else None
        if values is not None and values.max() > 0:
            shown = values.sort_values().iloc[_even_ranks(len(values), max_samples)]
            quantiles = tuple(values.quantile(list(_SHARES)).tolist())
            name = row.label + (BESIDE_OTHER_WORK if row.flag("disturbed") else "")
            found.append(Distribution(name=name, count=len(values), quantiles=quantiles, shown=tuple(shown.tolist())))
    return sorted(found, key=lambda each: (each.median, each.name))


def _even_ranks(count: int, most: int) -> list[int]:
    """At most ``most`` ranks from 0: all, or evenly spaced ones that include the first and last; none if that is below 2."""
    if count <= most:
        return list(range(count))
    return [round(step * (count - 1) / (most - 1)) for step in range(most)] if most > 1 else []


def how_shown(measured: Sequence[Distribution], max_samples: int) -> str:
    """What the marks mean, and what was left out."""
    counts = [each.count for each in measured]
    every = f"{min(counts)} to {max(counts)}" if min(counts) != max(counts) else f"{counts[0]}"
    marks = f"Line: 5 to 95 %; box: the middle half; tick: the median; all exact, from {every} samples per variant."
    if not any(each.shown for each in measured):
        return f"{marks} Single samples are not drawn: there are too many."
    if max(counts) <= max_samples:
        return f"{marks} Dots: every sample."
    return f"{marks} Dots: {max_samples} samples of each variant at evenly spaced ranks, from the smallest to the largest."


def chart(measured: Sequence[Distribution], title: str, look: Look) -> Json:
    """Boxes of quantiles on a log scale in milliseconds, the fastest variant first."""
    rows = [_row(each) for each in measured]
    dots = [{"label": visible(each.name), "ms": _ms(value)} for each in measured for value in each.shown]
    ink = look.ink
    order = [row["label"] for row in rows]
    above = [value for each in measured for value in (*each.quantiles, *each.shown) if value > 0]
    ends = (min(above) * _MS / 1.1, max(above) * _MS * 1.1)
    duration = {
        "title": "ms",
        "scale": {"type": "log", "domain": ends, "nice": False, "clamp": True},  # what arrives together takes 0: at the edge
        "axis": {"format": "~g", "values": log_ticks(*ends), "labelOverlap": "greedy"},
    }
    label = {"y": nominal("label", sort=order, title=None, axis=label_axis(ink))}
    tips = [nominal("label", title="Variant"), nominal("text", title=title), quantitative("n", title="Samples")]
    box = {**label, "x": quantitative("middle", **duration), "tooltip": tips}
    scattered = layer(
        "circle", {"size": 9, "opacity": 0.35, "color": ink("muted")}, {**label, "x": quantitative("ms", **duration)},
        data={"values": dots},
    )  # fmt: skip
    layers = [
        layer(
            "rule", {"strokeWidth": 1.4, "color": ink("accent")},
            {**box, "x": quantitative("low", title="ms"), "x2": {"field": "high"}},
        ),
        layer(
            "bar", {"height": 8, "color": ink("accent"), "opacity": 0.55},
            {**box, "x": quantitative("first", title="ms"), "x2": {"field": "third"}},
        ),
        layer("tick", {"height": 12, "thickness": 2.2, "color": ink("ink")}, box),
    ]  # fmt: skip
    return {
        "data": {"values": rows},
        "layer": [*([scattered] if dots else []), *layers],
        "width": look.width,
        "height": _STEP * len(rows),
        "description": f"{title}: quantiles of the durations of each variant",
    }


def _row(each: Distribution) -> dict[str, Any]:
    figures = {key: _ms(value) for key, value in zip(_KEYS, each.quantiles, strict=True)}
    low, middle, high = (format_seconds(each.quantiles[_KEYS.index(key)]) for key in ("low", "middle", "high"))
    return {"label": visible(each.name), "n": each.count, "text": f"{middle} ({low} to {high})", **figures}


def _ms(seconds: float) -> float:
    return float(f"{seconds * _MS:.4g}")
