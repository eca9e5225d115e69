"""The claims of the tutorials, one line each: the claim word for word, what was planned and measured, and the mark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from quantbench.claims import marks as m
from quantbench.claims.checked import Checked, judge_prose, judge_table
from quantbench.claims.claimed import claims
from quantbench.claims.evidence import Evidence
from quantbench.results.rows import Group
from quantbench.tables import TableKind
from quantbench.tables.table import Cell, Heading, Table

_NOTES = (
    "planned: from shapes and llama.cpp's dry run; for number types, what their libraries say; MB = 10^6 bytes",
    "why a size does not hold: the arithmetic of the text, then the figures of the real model",
    f"{m.HOLDS}: with two more decimals than the claim, the figure is still the claimed one",
    f"{m.ROUNDED}: only with as many decimals as the claim is it the claimed one",
    f"{m.RECIPE}: the claim is the size of an earlier recipe",
    f"{m.OUTDATED}: more works than was claimed, or a library no longer supports it",
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
"""An empty column is hidden from people."""


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per text and claimed table, judged also by what was measured."""
    return _tables(Evidence(groups))


def unmeasured() -> list[Table]:
    """The same, judged only by what was planned."""
    return _tables(Evidence())


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
    tally = ", ".join(f"{mark} {counts[mark]}" for mark in m.MARKS if counts[mark])
    source, date = text or checked[0].source, checked[0].date
    rows = [_row(each) for each in checked]
    used = {key for row in rows for key, cell in row.items() if cell.value}
    return Table(
        name="claims",
        title=f"Claims of '{source}'" + (", outside tables" if text else ""),
        facts={"source": source, "date": date, **{mark.replace(" ", "_"): counts[mark] for mark in m.MARKS}},
        caption=f"{len(checked)} claims ({date}): {tally}",
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
