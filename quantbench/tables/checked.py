"""The claims of the tutorials, one line each: what was claimed word for word, what was planned and measured, and its mark.

Every mark follows from a rule on figures (``_cell_checks``, ``_prose_checks``); none is written down with its claim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quantbench.tables import TableKind
from quantbench.tables import _marks as m
from quantbench.tables._cell_checks import CELL_CHECKS, ClaimedCell
from quantbench.tables._evidence import Evidence
from quantbench.tables._marks import Verdict
from quantbench.tables._prose_checks import PROSE_CHECKS
from quantbench.tables._rows import groups
from quantbench.tables._table import Cell, Heading, Table
from quantbench.tables.claims import claims, prose

if TYPE_CHECKING:
    import pandas as pd

_NOTES = (
    "planned: from shapes and llama.cpp's dry run, and of number types what their libraries say; MB = 10^6 bytes",
    "a size that does not hold: the sum that the text made, then what the real model has",
    f"{m.HOLDS}: with two decimals more than the claim has, the figure is still the claimed one",
    f"{m.ROUNDED}: with as many decimals as the claim has, it is the claimed one",
    f"{m.RECIPE}: the claim is the size of an earlier recipe",
    f"{m.OUTDATED}: more works than was claimed, or a library takes it no more",
    f"{m.NOT_YET}: quantbench run --model MODEL measures it; words on quality and speed are judged on real models only",
)
_HEADINGS = (
    Heading(key="place", title="Of"),
    Heading(key="claim", title="Claim"),
    Heading(key="planned", title="Planned", wraps=True),
    Heading(key="measured", title="Measured", wraps=True),
    Heading(key="mark", title="Mark", wraps=True),
    Heading(key="why", title="Why", wraps=True),
    *(
        Heading(key=key, title=key, shown=False)
        for key in ("planned_value", "measured_value", "subject", "heading", "variant", "source", "date")
    ),
)  # fmt: skip
"""A column that has nothing in it is left out for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A claim with its verdict; ``subject`` and ``heading`` say where in a table it stands."""

    text: str
    source: str
    date: str
    subject: str = ""
    heading: str = ""
    variant: str = ""
    verdict: Verdict


def table(frame: pd.DataFrame) -> list[Table]:
    """One table per text and claimed table, judged by the rows of ``frame`` too, which holds rows of ``scenarios``."""
    return _tables(Evidence(groups(frame)))


def unmeasured() -> list[Table]:
    """The same, judged by what was planned only."""
    return _tables(Evidence())


def judge_table(name: str, evidence: Evidence, model: str = "") -> Iterator[Checked]:
    """Every cell of a claimed table, or of those columns only that are sizes of ``model``."""
    claimed = claims()[name]
    for key, check in claimed.checks.items():
        if model and claimed.models.get(key) != model:
            continue
        for row in claimed.rows:
            cell = ClaimedCell(claimed, row, key)
            yield Checked(
                text=cell.text, source=claimed.source, date=claimed.date, subject=cell.subject, heading=cell.heading,
                variant=row.variant, verdict=CELL_CHECKS[check](cell, evidence),
            )  # fmt: skip


def size_notes(model: str) -> list[str]:
    """What was claimed of a model's sizes, with what is planned and the mark: one sentence a claimed table."""
    notes = []
    for name in claims():
        found = list(judge_table(name, Evidence(), model))
        told = [
            f"{each.variant} {each.text}, {each.verdict.planned.text} {each.verdict.mark}"
            + (f" ({each.verdict.why})" if each.verdict.why else "")
            for each in found
            if each.verdict.planned
        ]
        if told:
            notes.append(f"claimed ({found[0].source}), planned, and what that makes of the claim: {'; '.join(told)}")
    return notes


def judge_prose(evidence: Evidence) -> Iterator[Checked]:
    """Every claim outside tables."""
    for claim in prose():
        verdict = PROSE_CHECKS[claim.check](claim, evidence)
        yield Checked(text=claim.text, source=claim.source, date=claim.date, verdict=verdict)


def mark_notes(name: str, evidence: Evidence) -> list[str]:
    """The marks of a claimed table's cells, one sentence a mark."""
    found: dict[str, dict[str, list[str]]] = {}
    rows = len(claims()[name].rows)
    for each in judge_table(name, evidence):
        found.setdefault(each.verdict.mark, {}).setdefault(each.heading, []).append(each.subject)
    notes = []
    for mark in sorted(found, key=m.MARKS.index):
        cells = [
            heading if len(subjects) == rows else f"{heading} of {', '.join(subjects)}"
            for heading, subjects in found[mark].items()
        ]
        notes.append(f"claims, {mark}: {'; '.join(cells)}")
    return [*notes, "quantbench tables claims has the figures behind each mark"]


def _tables(evidence: Evidence) -> list[Table]:
    made = [_table(list(judge_table(name, evidence))) for name in claims()]
    texts: dict[str, list[Checked]] = {}
    for each in judge_prose(evidence):
        texts.setdefault(each.source.partition(", ")[0], []).append(each)
    made += [_table(checked, text) for text, checked in texts.items()]
    return [*made[:-1], replace(made[-1], notes=_NOTES)]


def _table(checked: Sequence[Checked], text: str = "") -> Table:
    """The claims of one table, or of the prose of one ``text``."""
    counts = Counter(each.verdict.mark for each in checked)
    told = ", ".join(f"{mark} {counts[mark]}" for mark in m.MARKS if counts[mark])
    source, date = text or checked[0].source, checked[0].date
    rows = [_row(each) for each in checked]
    used = {key for row in rows for key, cell in row.items() if cell.value}
    return Table(
        name="claims",
        title=f"Claims of '{source}'" + (", outside tables" if text else ""),
        facts={"source": source, "date": date, **{mark.replace(" ", "_"): counts[mark] for mark in m.MARKS}},
        caption=f"{len(checked)} claims ({date}): {told}",
        headings=tuple(replace(each, shown=each.shown and each.key in used) for each in _HEADINGS),
        rows=tuple(tuple(row[each.key] for each in _HEADINGS) for row in rows),
        listed=bool(text),
    )


def _row(each: Checked) -> dict[str, Cell]:
    planned, measured, why = each.verdict.planned, each.verdict.measured, each.verdict.why
    return {
        "place": Cell(f"{each.subject}, {each.heading}" if each.subject else None),
        "claim": Cell(each.text),
        "planned": Cell(planned.text if planned else None),
        "measured": Cell(measured.text if measured else None),
        "mark": Cell(each.verdict.mark),
        "why": Cell(why, why or " "),
        "planned_value": Cell(planned.value if planned else None),
        "measured_value": Cell(measured.value if measured else None),
        **{key: Cell(getattr(each, key) or None) for key in ("subject", "heading", "variant", "source", "date")},
    }


CLAIMS = TableKind(
    name="claims", about="what the tutorials claim, planned and measured, and which claims hold", place=45,
    build=table, unmeasured=unmeasured,
)  # fmt: skip
