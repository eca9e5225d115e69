"""A comparison in words, as a table, and as data; the worst comes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from statistics import median

from quantbench.core.text import escape_markdown, one_line, visible
from quantbench.core.units import format_bytes, format_seconds, significant
from quantbench.judge.compare import Change, Comparison, Entry
from quantbench.tables.render import render
from quantbench.tables.table import Cell, Heading, Table

MARKDOWN_LIMIT = 1_000_000
"""Bytes of a Markdown summary, at most: GitHub takes up to 1 MiB for a job's page."""

_NAMED = 5
_LONGEST = 500
"""Characters of a reason in the sentence; the table has all of it."""
_ORDER = (Change.WORSE, Change.INSUFFICIENT, Change.BETTER, Change.INCOMPARABLE, Change.SAME)
_UNITS: Mapping[str, Callable[[float], str]] = {"bytes": format_bytes, "s": format_seconds}


def sentence(comparison: Comparison) -> str:
    """The outcome and its grounds as one line without control characters, as names and reasons are untrusted."""
    counts = Counter(each.verdict for each in comparison.entries)
    worse = comparison.of(Change.WORSE)
    if worse:
        start = f"Regression: {_listed([_told(each) for each in worse])}"
    elif not comparison.conclusive:
        start = f"Not enough data: {_lacking(comparison)}"
    else:
        start = "No regression"
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in _ORDER if counts[verdict]) or "nothing to compare"
    return one_line(f"{start}; {tally}{_detectable(comparison)}{_left_out(comparison)}")


def table(comparison: Comparison, *, everything: bool) -> Table:
    """One line per figure; with ``everything``, also the figures that stayed the same."""
    shown = [each for each in _ordered(comparison.entries) if everything or each.verdict is not Change.SAME]
    headings = (
        Heading(key="scenario_id", title="Scenario"),
        Heading(key="metric", title="Figure"),
        Heading(key="baseline", title="Baseline", numeric=True),
        Heading(key="candidate", title="Candidate", numeric=True),
        Heading(key="change", title="Change", unit="ratio", numeric=True),
        Heading(key="mde", title="Shows from", unit="ratio", numeric=True),
        Heading(key="verdict", title="Verdict"),
        Heading(key="reason", title="Why", wraps=True),
    )
    hidden = len(comparison.entries) - len(shown)
    notes = [
        "change: of speeds, how much faster (+) or slower (-); of other figures, how much larger (+) or smaller (-)",
        "shows from: the least change that would have been found with 80 % power (speeds), or the threshold",
        *([f"{hidden} figures stayed the same and are not shown; --all shows them"] if hidden else []),
        *(f"versions: {note}" for note in comparison.notes),
        *(f"clocks: {note}" for note in comparison.throttled),
    ]
    return Table(
        name="compare",
        title="Compared",
        facts={"baseline": ", ".join(comparison.baseline_runs), "candidate": ", ".join(comparison.candidate_runs)},
        caption=f"Baseline {_listed(comparison.baseline_runs)}; candidate {_listed(comparison.candidate_runs)}",
        headings=headings,
        rows=tuple(_row(each) for each in shown),
        notes=tuple(notes),
    )


def as_markdown(comparison: Comparison, *, everything: bool) -> str:
    """The sentence and the table for a job's page, less than 1 MiB: the least urgent lines are left out first."""
    full = table(comparison, everything=everything)
    opening = escape_markdown(sentence(comparison)) + "\n\n"
    rows = full.rows
    while True:
        left = len(full.rows) - len(rows)
        notes = (*full.notes, *([f"{left} more lines do not fit here; --format json has all"] if left else []))
        kept = replace(full, rows=rows, notes=notes)
        text = opening + render([kept], "md")
        if len(text.encode()) <= MARKDOWN_LIMIT or not rows:
            return text
        rows = rows[: len(rows) * 3 // 4]


def as_data(comparison: Comparison) -> dict[str, object]:
    """Everything, for JSON."""
    return {
        "sentence": sentence(comparison),
        "conclusive": comparison.conclusive,
        "counts": {str(verdict): len(comparison.of(verdict)) for verdict in Change},
        "baseline_runs": list(comparison.baseline_runs),
        "candidate_runs": list(comparison.candidate_runs),
        "rule": asdict(comparison.rule),
        "notes": list(comparison.notes),
        "throttled": list(comparison.throttled),
        "left_out": list(comparison.left_out),
        "entries": [asdict(each) for each in _ordered(comparison.entries)],
    }


def as_junit(comparison: Comparison) -> str:
    """JUnit XML: one test case per figure, its values as properties; worse is a failure, no verdict is a skip."""
    from xml.etree import ElementTree as ET  # it writes XML, and parses none # nosec B405

    failures, skipped = (
        len(comparison.of(Change.WORSE)),
        len(comparison.of(Change.INSUFFICIENT)) + len(comparison.of(Change.INCOMPARABLE)),
    )
    suite = ET.Element("testsuite", {
        "name": "quantbench compare", "tests": str(len(comparison.entries)), "failures": str(failures),
        "skipped": str(skipped), "errors": "0",
    })  # fmt: skip
    for each in _ordered(comparison.entries):
        case = ET.SubElement(suite, "testcase", {"classname": visible(each.scenario_id), "name": each.metric or "comparable"})
        properties = ET.SubElement(case, "properties")
        for name in ("verdict", "baseline", "candidate", "change", "mde", "p_value", "unit"):
            value = getattr(each, name)
            if value not in (None, ""):
                ET.SubElement(properties, "property", {"name": name, "value": str(value)})
        if each.verdict is Change.WORSE:
            ET.SubElement(case, "failure", {"message": visible(_told(each))})
        elif each.verdict in (Change.INSUFFICIENT, Change.INCOMPARABLE):
            ET.SubElement(case, "skipped", {"message": visible(f"{each.verdict}: {each.reason}")})
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _ordered(entries: Sequence[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda each: _ORDER.index(each.verdict))


def _row(each: Entry) -> tuple[Cell, ...]:
    show = _UNITS.get(each.unit, significant)
    figures = [Cell.of(value, show) for value in (each.baseline, each.candidate)]
    return (
        Cell(each.scenario_id), Cell(each.metric or None), *figures, Cell.of(each.change, "{:+.1%}".format),
        Cell.of(each.mde, "{:.1%}".format),
        Cell(str(each.verdict)), Cell(each.reason or None),
    )  # fmt: skip


def _told(each: Entry) -> str:
    if each.change is None:
        return f"{each.scenario_id} {each.metric}".rstrip() + (f" {_cut(each.reason)}" if each.reason else "")
    p = "" if each.p_value is None else f" (p = {each.p_value:.2g})"
    return f"{each.scenario_id} {each.metric} {each.change:+.1%}{p}"


def _listed(parts: Sequence[str]) -> str:
    more = len(parts) - _NAMED
    return ", ".join(parts[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _lacking(comparison: Comparison) -> str:
    """Each reason, with the number of figures it applies to."""
    reasons = Counter(each.reason for each in comparison.of(Change.INSUFFICIENT))
    if not reasons:
        first = next((each.reason for each in comparison.of(Change.INCOMPARABLE)), "no scenario is on both sides")
        return f"nothing can be compared, for example {_cut(first)}"
    return "; ".join(f"{count} figure{'s' * (count != 1)}: {reason}" for reason, count in reasons.most_common(_NAMED))


def _detectable(comparison: Comparison) -> str:
    """The median of the least changes in speed that would have been found."""
    effects = [each.mde for each in comparison.of(Change.SAME) if each.mde is not None and each.gate]
    return f"; among the same speeds a change of {median(effects):.0%} would have shown (median)" if effects else ""


def _left_out(comparison: Comparison) -> str:
    """What the baseline has and the candidate did not select."""
    names = comparison.left_out
    counted = "1 scenario" if len(names) == 1 else f"{len(names)} scenarios"
    return f"; {counted} of the baseline not selected for the candidate: {_listed(names)}" if names else ""


def _cut(reason: str) -> str:
    """``reason``, cut where it is too long for a sentence."""
    return reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]} …"
