"""The two main charts of a run as one picture, drawn by the same code as those of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantbench.core.text import visible
from quantbench.core.units import short
from quantbench.report import _libraries
from quantbench.report.charts.bars import STEP, bars
from quantbench.report.charts.look import Look, config, on_paper, subject
from quantbench.report.charts.pareto import pareto
from quantbench.report.charts.points import points

if TYPE_CHECKING:
    from quantbench.advice.decision import Choice
    from quantbench.report._results import Results

_WIDTH, _LEAST_HEIGHT = 600, 430
"""Pixels of a chart: the width, and the height that it has at least."""


def picture(results: Results, form: str) -> bytes | None:
    """Size against KLD beside decode speed as ``png`` or ``svg``, of the first model that has both; None where none has."""
    _libraries.require()
    import altair as alt

    for group in results.groups:
        choice = results.choice(group)
        if choice is None:
            continue
        found = points(group, choice)
        with _libraries.neutral():
            look = Look(width=_WIDTH, ink=on_paper, height=max(_LEAST_HEIGHT, STEP * len(found)))
            charts = [pareto(found, choice.limits.max_kld, look), bars(found, look)]
            drawn = [chart for chart in charts if chart is not None]
            if len(drawn) < len(charts):
                continue
            titled = [
                chart.properties(title=alt.TitleParams(title, subtitle=subtitle, fontSize=14, offset=12))
                for chart, (title, subtitle) in zip(drawn, _titles(choice), strict=True)
            ]
            whole = alt.hconcat(*titled, spacing=36).resolve_scale(color="independent", shape="independent")
            about = f"run {group.fact('run_id')}, started {group.fact('started_at')[:16]} UTC"
            about = "; ".join(filter(None, (group.hardware, about)))
            title = alt.TitleParams(subject(group), subtitle=visible(about), fontSize=18, subtitleFontSize=12, offset=18)
            spec = whole.properties(title=title, padding=18).configure(**{**config(on_paper), "background": on_paper("page")})
            return _libraries.picture(spec.to_dict(), form)
    return None


def _titles(choice: Choice) -> tuple[tuple[str, str], tuple[str, str]]:
    ringed = f"ringed: the pick, {visible(choice.pick.name)}; " if choice.pick else ""
    marks = f"filled and joined: the front; {ringed}dashed: the limit of {short(choice.limits.max_kld)} nats"
    return (
        ("Size against KLD", marks),
        ("Decode speed", "with 95 % intervals"),
    )
