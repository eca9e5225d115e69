"""The page: the content of every section, the libraries, and the policy that lets nothing else run or load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantbench.report import _libraries
from quantbench.report.charts import figures
from quantbench.report.charts.look import DARK, FONT, LIGHT
from quantbench.report.markup import digest, fill, script, template
from quantbench.report.sections import facts
from quantbench.report.sections.answers import side_by_side
from quantbench.report.sections.decisions import decisions, heads
from quantbench.report.sections.rows import failures, listing
from quantbench.report.sections.tables import served, sheets
from quantbench.report.sections.upgrades import shown_upgrades

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quantbench.report._results import Results
    from quantbench.report.sections.answers import SideBySide
    from quantbench.results.rows import Row

LARGEST = 3_000_000
"""Bytes of a page, at most, as far as leaving details out can achieve it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """How much of what grows with the run is shown: bytes of answers, rows, samples per variant, points of a history."""

    answers: int
    rows: int
    samples: int
    history: int


DETAILS = (
    Detail(answers=700_000, rows=600, samples=40, history=1500),
    Detail(answers=250_000, rows=300, samples=12, history=600),
    Detail(answers=80_000, rows=150, samples=0, history=200),
)


def page(results: Results) -> str:
    """A self-contained page: nothing is loaded from elsewhere, and equal results give equal pages.

    Where the page would exceed LARGEST bytes, it shows less and says so. MissingDependency without the
    libraries of the extra ``report``.
    """
    _libraries.require()
    rows = results.every_row
    text = ""
    fixed = _fixed(results, rows)
    for detail in DETAILS:
        courses = figures.courses(results, detail.history)
        if detail is not DETAILS[-1] and _least(fixed["programs"], courses) > LARGEST:
            continue  # whatever else it shows
        text = fill("page.html", {**fixed, **_growing(results, rows, detail), "courses": courses})
        if len(text.encode()) <= LARGEST:
            break
    return text


def _least(programs: Sequence[str], courses: Sequence[figures.Course]) -> int:
    """Bytes of a page that has these programs and histories, at least."""
    return sum(map(len, programs)) + sum(len(course.points) for course in courses)


def _fixed(results: Results, rows: Sequence[Row]) -> dict[str, Any]:
    """What does not depend on the level of detail."""
    style = script(fill("page.css", {"light": LIGHT, "dark": DARK, "font": FONT}))
    programs = [script(_libraries.javascript()), script(template("page.js"))]
    seeds, others = sheets(results.stored)
    return {
        "policy": _policy(style, programs),
        "style": style,
        "programs": programs,
        "models": list(dict.fromkeys(group.model for group in results.groups)),
        "summary": _summary(results, rows),
        "decisions": decisions(results),
        "heads": heads(),
        "sizes": figures.sizes(results),
        "speeds": figures.speeds(results),
        "loads": figures.loads(results),
        "served": served(results.stored),
        "upgrades": shown_upgrades(results),
        "seeds": seeds,
        "others": others,
        "machine": facts.machine(results, rows),
        "versions": facts.versions(rows),
        "run": facts.run_facts(results, rows),
        "run_id": results.run_id,
        "unread": results.unread,
    }


def _growing(results: Results, rows: Sequence[Row], detail: Detail) -> dict[str, Any]:
    return {
        "latencies": figures.latencies(results, detail.samples),
        "answers": _answers(results, detail.answers),
        "listing": listing(rows, detail.rows),
        "failures": failures(rows, detail.rows),
        "failed": sum(not row.ok for row in rows),
    }


def _answers(results: Results, room: int) -> list[SideBySide]:
    outputs = results.outputs
    if outputs is None:
        return []
    groups = [group for group in results.groups if group.reads == "prompts"]
    picks = [choice.pick.name if choice and choice.pick else "" for choice in map(results.choice, groups)]
    share = room // max(len(groups), 1)
    made = [side_by_side(group, outputs, room=share, opened=pick) for group, pick in zip(groups, picks, strict=True)]
    return [each for each in made if each]


def _summary(results: Results, rows: Sequence[Row]) -> Mapping[str, str]:
    statuses = [row.text("status") for row in rows]
    others = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses) if status != "ok"]
    measured = f"{statuses.count('ok')} of {len(rows)} scenarios measured"
    hardware = dict.fromkeys(group.hardware for group in results.groups if group.hardware)
    return {
        "started": f"{rows[0].text('started_at')[:16]} UTC",
        "scenarios": ", ".join([measured, *others]),
        "hardware": "; ".join(hardware),
    }


def _policy(style: str, programs: Sequence[str]) -> str:
    scripts = " ".join(digest(each) for each in programs)
    return f"default-src 'none'; script-src {scripts}; style-src {digest(style)}; base-uri 'none'; form-action 'none'"
