"""A scenario over the runs that measured it: speed over the anchor, KLD and weights, with intervals where there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantbench.core.text import visible
from quantbench.report.charts.look import Json, Look, layer, nominal, quantitative
from quantbench.results.rows import Group, Row, groups
from quantbench.results.schema import column_of, table_columns

if TYPE_CHECKING:
    import pandas as pd

_METRICS = {
    "prompts": ("decode_ratio", "kld_mean", "weight_bytes"),
    "text": ("ppl_ratio", "kld_mean", "weight_bytes"),
    "inputs": ("call_ratio", "output_max_abs_error", "weight_bytes"),
}
"""The metrics followed, by the kind of prompts. A ratio to the anchor moves far less between processes than a raw figure."""

_IDENTITY = (
    "run_id", "started_at", "scenario_key", "model", "method", "precision", "prompts", "repeat", "status", "reason", "control",
    "reference", "bits", "instrument_check", "machine", "batch",
)  # fmt: skip
_TEXTS = ("name", "run", "series", "machine")
_ENDS = ("low", "high")
_DIGITS = 6
"""Of a figure in a chart, which shows no more."""

POINTS = "points"
"""The name of the dataset that the charts of a history share."""

_SCALES = {"weight_bytes": 1e-6}
_SCALED = {"weight_bytes": ", MB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One model and prompt set over several runs; ``names`` are its variants, ``group`` its latest run."""

    group: Group
    names: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    runs: int
    left_out: int

    @property
    def metrics(self) -> tuple[tuple[str, str], ...]:
        """The metrics followed, with their titles; only those that were measured."""
        known = (name for name in _METRICS[self.group.reads] if any(row.get(name) is not None for row in self.rows))
        return tuple((name, column_of(name).title + _SCALED.get(name, "")) for name in known)


def subjects(frame: pd.DataFrame) -> list[list[Group]]:
    """The groups of each model and prompt set, in the order in which their runs started."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in groups(frame[columns()]):
        found.setdefault((group.fact("model"), group.fact("prompts")), []).append(group)
    return [sorted(each, key=lambda group: group.fact("started_at")) for each in found.values()]


def histories(followed: Sequence[Sequence[Group]], max_points: int) -> list[History]:
    """One for each of the ``subjects`` that several runs measured: the latest runs, up to ``max_points`` points."""
    found = [_history(each, max_points) for each in followed]
    found.sort(key=lambda each: each.group.instrument_check)
    return [each for each in found if each.runs > 1 and each.metrics]


def _history(of_runs: Sequence[Group], max_points: int) -> History:
    kept: list[Group] = []
    for group in reversed(of_runs):
        if len(kept) > 1 and sum(len(each.rows) for each in kept) + len(group.rows) > max_points:
            break
        kept.insert(0, group)
    metrics = _METRICS[kept[-1].reads]
    rows = [_point(row, metrics) for group in kept for row in group.rows if row.ok and not row.flag("control")]
    names = dict.fromkeys(row["name"] for row in rows)
    return History(
        group=kept[-1], names=tuple(names), rows=tuple(rows), runs=len(kept), left_out=len(of_runs) - len(kept)
    )  # fmt: skip


def columns() -> list[str]:
    """The columns that a history needs."""
    names = dict.fromkeys(name for of in _METRICS.values() for name in of)
    known = {column.name for column in table_columns("scenarios")}
    ends = [f"{name}_{end}" for name in names for end in ("low", "high")]
    return [*_IDENTITY, *names, *(name for name in ends if name in known)]


def _point(row: Row, metrics: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in metrics:
        for key in (name, *(f"{name}_{end}" for end in _ENDS)):
            figure = row.number(key)
            if figure is not None:
                values[key] = float(f"{figure * _SCALES.get(name, 1):.{_DIGITS}g}")
    started = row.values["started_at"]
    return {
        "name": visible(row.variant), "run": visible(row.text("run_id")), "at": round(started.timestamp() * 1000),
        "series": f"{row.text('scenario_key')[:16]} {row.text('machine')}", "machine": visible(row.text("machine")), **values,
    }  # fmt: skip


def points(history: History) -> dict[str, Any]:
    """The points of all its charts, as the page unpacks them: each row the values of the ``fields``, texts by their place."""
    figures = [name for metric, _ in history.metrics for name in (metric, *(f"{metric}_{end}" for end in _ENDS))]
    fields = [*_TEXTS, "at", *(name for name in figures if any(name in row for row in history.rows))]
    places: dict[str, int] = {}

    def packed(row: Mapping[str, Any], name: str) -> Any:
        return places.setdefault(row[name], len(places)) if name in _TEXTS else row.get(name)

    rows = [[packed(row, name) for name in fields] for row in history.rows]
    return {"texts": list(places), "named": len(_TEXTS), "fields": fields, "rows": rows}


def chart(metric: str, title: str, first: str, look: Look) -> Json:
    """A metric over the start of the runs, for the variant that the signal ``picked`` names, at first ``first``.

    The ``points`` are its dataset POINTS. They are joined where the request (``scenario_key``) and the machine are the same.
    """
    base = {
        "x": {
            "field": "at", "type": "temporal", "title": None, "scale": {"type": "utc"},
            "axis": {"format": "%b %d, %H:%M", "labelOverlap": "greedy", "tickCount": 3, "grid": False},
        },
        "y": quantitative(metric, title=None, scale={"zero": False, "padding": 12}, axis={"tickCount": 4}),
        "detail": nominal("series"),
    }  # fmt: skip
    tips = [nominal("run", title="Run"), nominal("machine", title="Machine"), quantitative(metric, title=title)]
    interval = {**base, "y": quantitative(f"{metric}_low", title=None), "y2": {"field": f"{metric}_high"}}
    where = f"datum.name == picked && isValid(datum.{metric})"
    accent = look.ink("accent")
    return {
        "data": {"name": POINTS},
        "params": [{"name": "picked", "value": first}],
        "layer": [
            layer("rule", {"color": accent, "opacity": 0.6}, interval, where),
            layer("line", {"color": accent, "strokeWidth": 1.8}, base, where),
            layer("point", {"filled": True, "size": 55, "opacity": 1, "color": accent}, {**base, "tooltip": tips}, where),
        ],
        "width": look.width,
        "height": 170,
        "description": f"{title} over the runs",
    }
