"""The claims of the tutorials, each with its verdict: the planned figure, the measured one, and the mark.

Every mark follows from a rule on figures (``cells``, ``prose``); none is written down with its claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quantbench.claims import marks as m
from quantbench.claims.cells import CELL_CHECKS, ClaimedCell
from quantbench.claims.claimed import claims, prose
from quantbench.claims.evidence import Evidence
from quantbench.claims.marks import Judgement
from quantbench.claims.prose import PROSE_CHECKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A claim with its verdict; ``subject`` and ``heading`` name its row and column in a table."""

    text: str
    source: str
    date: str
    subject: str = ""
    heading: str = ""
    variant: str = ""
    verdict: Judgement


def judge_table(name: str, evidence: Evidence, model: str = "") -> Iterator[Checked]:
    """Every cell of a claimed table, or only those of columns that give sizes of ``model``."""
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
    """The claimed sizes of a model with the planned ones and their marks: one sentence per claimed table."""
    notes = []
    for name in claims():
        found = list(judge_table(name, Evidence(), model))
        parts = [
            f"{each.variant} {each.text}, {each.verdict.planned.text} {each.verdict.mark}"
            + (f" ({each.verdict.why})" if each.verdict.why else "")
            for each in found
            if each.verdict.planned
        ]
        if parts:
            notes.append(f"claimed ({found[0].source}), planned, and the verdict on the claim: {'; '.join(parts)}")
    return notes


def judge_prose(evidence: Evidence) -> Iterator[Checked]:
    """Every claim outside tables."""
    for claim in prose():
        verdict = PROSE_CHECKS[claim.check](claim, evidence)
        yield Checked(text=claim.text, source=claim.source, date=claim.date, verdict=verdict)


def mark_notes(name: str, evidence: Evidence) -> list[str]:
    """The marks of a claimed table's cells, one sentence per mark."""
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
    return [*notes, "quantbench tables claims shows the figures behind each mark"]
