"""The charts of a page, one list per topic; each has its title, its caption and its specification as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantbench.advice.decision import DEFAULT_WORD
from quantbench.advice.words import words
from quantbench.core.text import visible
from quantbench.core.units import short
from quantbench.report.charts import history, latency, load
from quantbench.report.charts.bars import bars
from quantbench.report.charts.look import Json, Look, on_page, specification, subject
from quantbench.report.charts.pareto import pareto
from quantbench.report.charts.points import Point, points
from quantbench.report.markup import data_block

if TYPE_CHECKING:
    from markupsafe import Markup

    from quantbench.advice.decision import Choice
    from quantbench.report._results import Results
    from quantbench.results.rows import Group

LOOK = Look(width="container", ink=on_page)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A chart: what it shows, what its marks mean, and its Vega-Lite specification as data in a page."""

    title: str
    caption: str
    spec: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """The history of one model and prompt set: one chart per metric, their points, and the variants to pick from."""

    title: str
    names: tuple[str, ...]
    points: Markup
    figures: tuple[Picture, ...]
    runs: int
    left_out: int


def sizes(results: Results) -> list[Picture]:
    """Size against KLD, for each group that was compared with a reference."""
    return list(_sizes(results))


def _sizes(results: Results) -> Iterator[Picture]:
    for group in results.groups:
        choice = results.choice(group)
        limit = choice.limits.max_kld if choice else words().quality.upper_edge(DEFAULT_WORD)
        chart = pareto(points(group, choice), limit, LOOK)
        if chart is not None:
            yield _figure(subject(group), _pareto_caption(group, choice, limit), chart)


def _pareto_caption(group: Group, choice: Choice | None, limit: float) -> str:
    left_out = [
        row.label
        for row in group.rows
        if row.ok and not row.flag("control") and not (row.number("weight_bytes") and (row.number("kld_mean") or 0) > 0)
    ]
    picked = f"Ringed: the pick, {choice.pick.name}. " if choice and choice.pick else ""
    missing = f" Not drawn, without a size or without a KLD above 0: {', '.join(left_out)}." if left_out else ""
    return (
        "Further left and lower is better; both scales are logarithmic. Filled and joined: the front, which no other variant "
        f"beats in both size and KLD (the decision counts speed as well). {picked}Vertical lines, where drawn: 95 % intervals. "
        f'Dashed: the limit of {short(limit)} nats, the upper edge of "{DEFAULT_WORD}". '
        f"Hover over a point for its name.{missing}"
    )


def speeds(results: Results) -> list[Picture]:
    """Decode throughput, for each group that answered prompts."""
    found = []
    for group in results.groups:
        shown = points(group, results.choice(group))
        chart = bars(shown, LOOK)
        if chart is not None:
            found.append(_figure(subject(group), _bars_caption(shown), chart))
    return found


def _bars_caption(shown: Sequence[Point]) -> str:
    timed = [each for each in shown if each.tps is not None]
    bare = [each.name for each in timed if each.tps_low is None]
    if len(bare) == len(timed):
        return "Longer is better. No variant has an interval: there were too few rounds."
    lacking = f" Too few rounds for an interval: {', '.join(bare)}." if bare else ""
    return f"Longer is better. Lines: 95 % intervals.{lacking}"


def latencies(results: Results, max_samples: int) -> list[Picture]:
    """Distributions of durations by phase, for each group with samples; at most ``max_samples`` dots per variant."""
    if results.samples is None:
        return []
    found = []
    for group in results.groups:
        for phase, title in latency.PHASES.items():
            measured = latency.distributions(group, results.samples, phase, max_samples)
            if measured:
                chart = latency.chart(measured, title, LOOK)
                found.append(_figure(f"{title}: {subject(group)}", latency.how_shown(measured, max_samples), chart))
    return found


def loads(results: Results) -> list[Picture]:
    """Throughput of servers by requests at once, for each group in which that was measured."""
    found = []
    for group in results.groups:
        chart = load.chart(load.served(group), LOOK)
        if chart is not None:
            caption = "Tokens/s of all answers together, at each number of requests up to the most that were sent at once."
            found.append(_figure(f"Requests at once: {subject(group)}", caption, chart))
    return found


def courses(results: Results, max_points: int) -> list[Course]:
    """What was measured in several runs, over the times they started; at most about ``max_points`` points a history."""
    return [
        Course(
            title=subject(each.group),
            names=each.names,
            points=data_block(history.points(each)),
            figures=tuple(_metric_course(metric, title, each.names[0]) for metric, title in each.metrics),
            runs=each.runs,
            left_out=each.left_out,
        )
        for each in history.histories(results.subjects, max_points)
    ]


def _metric_course(metric: str, title: str, first: str) -> Picture:
    return _figure(title, "", history.chart(metric, title, first, LOOK))


def _figure(title: str, caption: str, chart: Json) -> Picture:
    spec = specification(chart, LOOK.ink)
    return Picture(title=visible(title), caption=caption, spec=data_block(spec))
