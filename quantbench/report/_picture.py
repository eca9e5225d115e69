"""A run as one picture to share: the decision above size against KLD and decode speed, drawn as on the page."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantbench.advice.headline import headline
from quantbench.core.text import visible
from quantbench.core.units import short
from quantbench.report import _libraries
from quantbench.report.charts.bars import bars
from quantbench.report.charts.look import FONT, LIGHT, Json, Look, on_paper, specification, subject
from quantbench.report.charts.pareto import pareto
from quantbench.report.charts.points import Point, on_front, points
from quantbench.report.markup import fill, script
from quantbench.tables.fields import BESIDE_OTHER_WORK

if TYPE_CHECKING:
    from markupsafe import Markup

    from quantbench.advice.decision import Choice
    from quantbench.report._results import Results
    from quantbench.results.rows import Group

WIDTH, HEIGHT = 1200, 630
"""Pixels: what pages that show a link as a card ask for."""

_EDGE = 40
_SIZES = (34, 30, 26, 22)
"""Pixels of the headline, by the largest that lets it take two lines."""

_LETTER = 0.58
"""Width of a letter over its height: an upper bound of the average of a bold sans serif."""

_LINES = 2
_SPEEDS = 12
"""Bars, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A chart in the picture: where it stands, its size there and by itself in pixels, what it is, and its drawing."""

    x: int
    width: int
    title: str
    subtitle: str
    own: tuple[float, float]
    drawing: Markup


def picture(results: Results, form: str) -> bytes | None:
    """The picture as ``png`` or ``svg`` of the first model with sizes, KLD and speeds; None where none has them."""
    _libraries.require()
    for group in results.groups:
        choice = results.choice(group)
        panels = _panels(group, choice) if choice else []
        if choice and panels:
            size, lines = _in_lines(headline(choice))
            about = {
                "subject": subject(group), "headline": headline(choice), "size": size, "lines": lines, "panels": panels,
                "footer": " · ".join(_footer(group)),
            }  # fmt: skip
            place = {"width": WIDTH, "height": HEIGHT, "edge": _EDGE, "font": FONT, "colours": LIGHT}
            drawn = fill("picture.svg", {**about, **place})
            return drawn.encode() if form == "svg" else _libraries.as_png(drawn)
    return None


def _in_lines(text: str) -> tuple[int, list[str]]:
    """``text`` in the largest size that lets it take two lines; what fits in no size is cut."""
    room = WIDTH - 2 * _EDGE
    shown = visible(text, "")
    for size in _SIZES:
        lines = textwrap.wrap(shown, int(room / (size * _LETTER)))
        if len(lines) <= _LINES:
            return size, lines
    return size, textwrap.wrap(shown, int(room / (size * _LETTER)), max_lines=_LINES, placeholder=" …")


def _panels(group: Group, choice: Choice) -> list[Panel]:
    """Size against KLD beside speeds; none where one of them has nothing to show."""
    found = points(group, choice)
    fastest = _shortlist(found)
    charts = (
        pareto(found, choice.limits.max_kld, Look(width=520, height=268, ink=on_paper)),
        bars(fastest, Look(width=210, ink=on_paper)),
    )
    drawn = [_drawing(chart) for chart in charts if chart is not None]
    if len(drawn) < len(charts):
        return []
    ringed = f"ringed: {visible(choice.pick.name)}; " if choice.pick else ""
    left_out = sum(each.tps is not None for each in found) - len(fastest)
    texts = (
        ("Size against KLD", f"left and low is better; {ringed}dashed: limit of {short(choice.limits.max_kld)} nats"),
        ("Decode speed", "with 95 % intervals" + (f"; {left_out} more not shown" if left_out else "")),
    )
    places = ((_EDGE, 690), (_EDGE + 690 + 30, 400))
    return [
        Panel(x=x, width=width, title=title, subtitle=subtitle, own=own, drawing=drawing)
        for (x, width), (title, subtitle), (own, drawing) in zip(places, texts, drawn, strict=True)
    ]


def _shortlist(found: Sequence[Point]) -> list[Point]:
    """The points whose speeds are shown: those with a part in the decision, then the front, then the fastest others."""
    front = on_front(found)
    timed = [(each, each.tps) for each in found if each.tps is not None]
    timed.sort(key=lambda pair: (not pair[0].role, pair[0].name not in front, -pair[1], pair[0].name))
    return [each for each, _ in timed[:_SPEEDS]]


def _drawing(chart: Json) -> tuple[tuple[float, float], Markup]:
    """A chart as SVG, and its width and height."""
    drawn = _libraries.as_svg(specification(chart, on_paper))
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)
    assert size, "vl-convert gives a picture its size"
    return (float(size[1]), float(size[2])), script(drawn)


def _footer(group: Group) -> Iterator[str]:
    """The machine, the date, what measured it, and what a sign means."""
    if group.hardware:
        yield group.hardware
    yield f"{group.fact('started_at')[:10]}, run {group.fact('run_id')}"
    yield f"quantbench {group.version('quantbench')}".rstrip()
    if any(row.flag("disturbed") for row in group.rows):
        yield f"{BESIDE_OTHER_WORK} measured beside other work"
