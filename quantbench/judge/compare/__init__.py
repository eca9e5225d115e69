"""A candidate against a baseline: what got better, got worse or stayed the same, per scenario and figure.

Speeds are judged by the decision rule (``quantbench.core.verdict``), whose unit is a fresh process. Figures that are the same
each time they are measured (bytes, and KLD at an equal seed and kernel) are judged by a threshold alone. Rows that were asked
differently, measured on another machine, run by another kernel or stored under another schema are incomparable, and say why.
A process that fails where none did before makes its scenario worse, whatever the others measured. So does a scenario that is
gone, unless it was left out of the selection, and a figure that is null or not finite where it was a number. Speeds measured
beside other work are left out. A change of KLD or top-1 below the effect of slicing positions into other forward passes counts
as none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING

from quantbench.core.verdict import Comparand, Finding, Rule, Side, Verdict, judge
from quantbench.judge.compare import _figures as figures
from quantbench.judge.compare._figures import Exact, Timed, exact_of, parse_threshold
from quantbench.judge.compare._pairs import GONE, ScenarioPair, pairs

if TYPE_CHECKING:
    import pandas as pd

    from quantbench.results.rows import Row

__all__ = ["STATUS", "Comparison", "Entry", "Verdict", "compare", "parse_threshold"]

STATUS = "status"
"""The figure that stands for how a scenario ended."""


class Change(StrEnum):
    """How a figure changed."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    INSUFFICIENT = "insufficient data"
    INCOMPARABLE = "incomparable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One figure of one scenario.

    ``baseline`` and ``candidate`` are medians over processes, in ``unit``. ``change`` is relative: 0.05 means 5 % more. For
    timed figures it is the change in speed, by the gate that decided (``ratio`` to the anchor, or ``raw``). ``mde`` is the
    least change that would have been found and would have counted. Each is None where there is no such figure. ``processes``
    counts those of baseline and candidate.
    """

    scenario_id: str
    metric: str
    verdict: Change
    unit: str = ""
    baseline: float | None = None
    candidate: float | None = None
    change: float | None = None
    mde: float | None = None
    p_value: float | None = None
    gate: str = ""
    processes: tuple[int, int] = (0, 0)
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All entries, scenario by scenario; ``notes`` say what else changed between the sides, ``throttled`` what the GPU slowed.

    ``left_out`` are scenarios of the baseline that the candidate's runs were not asked for.
    """

    entries: tuple[Entry, ...]
    baseline_runs: tuple[str, ...]
    candidate_runs: tuple[str, ...]
    rule: Rule
    notes: tuple[str, ...] = ()
    throttled: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def of(self, verdict: Change) -> tuple[Entry, ...]:
        """The entries with this verdict."""
        return tuple(each for each in self.entries if each.verdict is verdict)

    @property
    def conclusive(self) -> bool:
        """Whether something could be compared and nothing lacked data."""
        compared = (Change.BETTER, Change.WORSE, Change.SAME)
        return not self.of(Change.INSUFFICIENT) and any(each.verdict in compared for each in self.entries)


def compare(
    baseline: pd.DataFrame,
    candidate: pd.DataFrame,
    *,
    again: pd.DataFrame | None = None,
    thresholds: Mapping[str, float] | None = None,
    rule: Rule | None = None,
    whole: bool = False,
) -> Comparison:
    """Compare rows of ``scenarios``; each side may hold several runs and repeats, whose rows are its processes.

    ``again`` holds rows measured after something was flagged; without them, a candidate with at least twice the processes that
    the rule needs serves as its own second measurement. ``thresholds`` are the least relative changes that count, by figure or
    column; a column with a direction that is not judged by default is judged as well. ``whole`` says that the candidate's runs
    have a row for every scenario they selected, so that a missing one was not selected. UsageError for a threshold of an
    unknown column.
    """
    rule = rule or Rule()
    least_changes = dict(thresholds or {})
    judged = (*figures.exact(), *exact_of(least_changes))
    exact = [replace(each, least=least_changes.get(each.column, each.least)) for each in judged]
    matched = list(pairs(baseline, candidate, again, rule.min_processes))
    left_out = tuple(pair.scenario_id for pair in matched if pair.gone) if whole else ()
    matched = _without_gone(matched) if whole or not any(pair.comparable for pair in matched) else matched
    cells = {
        _name(pair, timed): (timed, pair, cell)
        for pair in matched
        for timed in figures.timed()
        if (cell := _cell(pair, timed)) is not None
    }
    findings = {each.name: each for each in judge([cell for _, _, cell in cells.values()], rule)}
    timed = {
        name: _timed(figure, pair, cell, findings[name], rule=rule, least=least_changes.get(figure.name, 0.0))
        for name, (figure, pair, cell) in cells.items()
    }
    return Comparison(
        entries=tuple(entry for pair in matched for entry in _of_pair(pair, timed, exact)),
        baseline_runs=_runs(baseline),
        candidate_runs=_runs(candidate),
        rule=rule,
        notes=tuple(_changed_versions(matched)),
        throttled=tuple(_throttled(matched)),
        left_out=left_out,
    )


def _without_gone(found: Sequence[ScenarioPair]) -> list[ScenarioPair]:
    """The pairs, with scenarios gone from the candidate as incomparable, not worse."""
    return [replace(pair, gone=False, incomparable=GONE) if pair.gone else pair for pair in found]


def _of_pair(pair: ScenarioPair, timed: Mapping[str, Entry], exact: Sequence[Exact]) -> Iterator[Entry]:
    """The entries of a scenario; just one where it cannot be compared or ended differently."""
    if pair.incomparable:
        yield Entry(scenario_id=pair.scenario_id, metric="", verdict=Change.INCOMPARABLE, reason=pair.incomparable)
        return
    if pair.gone:
        yield Entry(
            scenario_id=pair.scenario_id, metric=STATUS, verdict=Change.WORSE, reason=GONE, processes=(len(pair.baseline), 0)
        )
        return
    if how := pair.ended or pair.failing:
        verdict = Change.BETTER if pair.ended and not pair.worse_end else Change.WORSE
        counts = len(pair.baseline), len(pair.candidate)
        yield Entry(scenario_id=pair.scenario_id, metric=STATUS, verdict=verdict, reason=how, processes=counts)
    if pair.ended:
        return
    for figure in figures.timed():
        if entry := timed.get(_name(pair, figure)) or _one_sided(pair, figure):
            yield entry
    for each in exact:
        if entry := _exact(pair, each):
            yield entry


def _cell(pair: ScenarioPair, timed: Timed) -> Comparand | None:
    """The figure's values on both sides, as speeds (higher is better); None where a side has none."""
    if not pair.comparable or pair.ended:
        return None
    sides = [_values(rows, timed) for rows in (pair.baseline, pair.candidate)]
    if not all(side.raws for side in sides):
        return None
    again = _values(pair.again, timed) if pair.again else None
    return Comparand(name=_name(pair, timed), better="higher", baseline=sides[0], candidate=sides[1], again=again)


def _name(pair: ScenarioPair, timed: Timed) -> str:
    return f"{pair.scenario_id} {timed.name}"


def _values(rows: Sequence[Row], timed: Timed, *, quiet: bool = True) -> Side:
    """The values of the processes; if ``quiet``, only of those that other work did not disturb."""
    used = [row for row in rows if not (quiet and row.flag("disturbed"))]
    raws, ratios = (
        [value for row in used if (value := row.number(name)) is not None and value > 0] for name in (timed.raw, timed.ratio)
    )
    return Side(
        raws=tuple(1 / value if timed.inverse else value for value in raws),
        ratios=tuple(ratios) if len(ratios) == len(raws) else (),
        runs=_shared_runs([row for row in used if row.number(timed.raw)]),
    )


def _shared_runs(rows: Sequence[Row]) -> int | None:
    """How many runs the processes come from; None where each has a run of its own."""
    runs = len({row.text("run_id") for row in rows})
    return runs if runs < len(rows) else None


_VERDICTS: Mapping[Verdict, Change] = {
    Verdict.BETTER: Change.BETTER, Verdict.WORSE: Change.WORSE, Verdict.SAME: Change.SAME,
    Verdict.SUSPECT_BETTER: Change.INSUFFICIENT, Verdict.SUSPECT_WORSE: Change.INSUFFICIENT,
    Verdict.INSUFFICIENT: Change.INSUFFICIENT,
}  # fmt: skip


def _timed(timed: Timed, pair: ScenarioPair, cell: Comparand, finding: Finding, *, rule: Rule, least: float) -> Entry:
    counts = len(cell.baseline.raws), len(cell.candidate.raws)
    verdict = _VERDICTS[finding.verdict]
    small = finding.change is not None and abs(finding.change) < least
    if small:
        verdict = Change.SAME
    reason = "" if small else _lacking(finding, counts, rule)
    disturbed = _disturbed(pair)
    first, second = (median(values) for values in (cell.baseline.raws, cell.candidate.raws))
    return Entry(
        scenario_id=pair.scenario_id, metric=timed.name, verdict=verdict, unit=timed.unit,
        baseline=1 / first if timed.inverse else first, candidate=1 / second if timed.inverse else second,
        change=finding.change, mde=None if finding.mde is None else max(finding.mde, least), p_value=finding.p_value,
        gate="" if finding.mde is None else finding.gate, processes=counts,
        reason=f"{reason}; {disturbed}" if reason and disturbed else reason,
    )  # fmt: skip


def _one_sided(pair: ScenarioPair, timed: Timed) -> Entry | None:
    """The entry of a speed that a side lacks, or has only beside other work; None where both sides lack it."""
    sides = pair.baseline, pair.candidate
    counts = tuple(len(_values(rows, timed, quiet=False).raws) for rows in sides)
    if all(counts):
        return Entry(
            scenario_id=pair.scenario_id, metric=timed.name, verdict=Change.INSUFFICIENT, unit=timed.unit,
            processes=(len(_values(sides[0], timed).raws), len(_values(sides[1], timed).raws)), reason=_disturbed(pair),
        )  # fmt: skip
    return _lost(pair, timed.name, timed.unit, (counts[0], counts[1]), timed.raw) if any(counts) else None


def _disturbed(pair: ScenarioPair) -> str:
    """How many processes of each side were disturbed, with an example of the cause; empty where none was."""
    said = []
    for side in ("baseline", "candidate"):
        rows: tuple[Row, ...] = getattr(pair, side)
        if found := [row for row in rows if row.flag("disturbed")]:
            why = found[0].text("disturbance")
            said.append(f"{len(found)} of {len(rows)} of the {side}" + (f" ({why})" if why else ""))
    return f"measured beside other work: {' and '.join(said)}; measure again on a quiet machine" if said else ""


def _lost(pair: ScenarioPair, metric: str, unit: str, counts: tuple[int, int], column: str) -> Entry:
    """The entry of a figure that only one side has: worse where the candidate lost it, with the reason."""
    if not counts[0]:
        return Entry(
            scenario_id=pair.scenario_id, metric=metric, verdict=Change.INCOMPARABLE, unit=unit, processes=counts,
            reason="the baseline has none",
        )  # fmt: skip
    bare = next(row for row in pair.candidate if row.number(column) is None or not counts[1])
    value = bare.values.get(column)
    why = bare.null_reason(column) or ("null" if value is None else f"it is {value}")
    missing = len(pair.candidate) - counts[1]
    lacking = "the candidate has none" if not counts[1] else f"{missing} of {len(pair.candidate)} processes have none"
    return Entry(
        scenario_id=pair.scenario_id, metric=metric, verdict=Change.WORSE, unit=unit, processes=counts,
        reason=f"{lacking}, where the baseline has it: {why}",
    )  # fmt: skip


def _lacking(finding: Finding, counts: tuple[int, int], rule: Rule) -> str:
    """What is missing for a verdict; empty where enough was measured."""
    if finding.common is not None:
        return f"all speeds moved together, by {finding.common:+.0%} in the median, as runs may: measure in more runs"
    if finding.verdict is Verdict.INSUFFICIENT:
        sides = zip(("baseline", "candidate"), counts, strict=True)
        short = [f"{rule.min_processes - count} more of the {side}" for side, count in sides if count < rule.min_processes]
        return f"the rule needs {rule.min_processes} processes per side: {' and '.join(short)}"
    if finding.verdict in (Verdict.SUSPECT_BETTER, Verdict.SUSPECT_WORSE) and finding.change is not None:
        return f"flagged, and believed only if found again: measure {rule.min_processes} more processes of the candidate"
    return ""


def _exact(pair: ScenarioPair, exact: Exact) -> Entry | None:
    """The entry of a figure that is the same each time; None where neither side has it."""
    first, second = (
        [value for row in rows if (value := row.number(exact.column)) is not None] for rows in (pair.baseline, pair.candidate)
    )
    if not first and not second:
        return None
    counts = len(first), len(second)
    if not all(counts) or (counts[0] == len(pair.baseline) and counts[1] < len(pair.candidate)):
        return _lost(pair, exact.column, exact.unit, counts, exact.column)
    before, after = median(first), median(second)
    change = (after - before) / abs(before) if before else None
    moved = abs(after - before) > max(exact.floor, _slicing(pair, exact)) and (change is None or abs(change) > exact.least)
    better = (after > before) == (exact.better == "higher")
    verdict = Change.SAME if not moved else Change.BETTER if better else Change.WORSE
    return Entry(
        scenario_id=pair.scenario_id, metric=exact.column, verdict=verdict, unit=exact.unit, baseline=before, candidate=after,
        change=change, mde=exact.least or None, processes=counts,
    )  # fmt: skip


def _slicing(pair: ScenarioPair, exact: Exact) -> float:
    """How much the figure changes when the same positions are sliced into other forward passes: the larger of both sides."""
    rows = (*pair.baseline, *pair.candidate)
    return max((abs(row.number(exact.slicing) or 0.0) for row in rows), default=0.0) if exact.slicing else 0.0


def _runs(frame: pd.DataFrame) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(str, frame["run_id"])))


def _changed_versions(found: Sequence[ScenarioPair]) -> list[str]:
    """The library versions named by both sides that differ."""
    changed: dict[str, tuple[str, str]] = {}
    for pair in found:
        changed |= pair.changed_versions()
    return [f"{name} {before} became {after}" for name, (before, after) in sorted(changed.items())]


def _throttled(found: Sequence[ScenarioPair]) -> Iterator[str]:
    """For each side, what was measured while the GPU throttled its clocks, and why it did."""
    for side in ("baseline", "candidate"):
        slowed = {pair.scenario_id: why for pair in found if (why := _reasons(getattr(pair, side)))}
        if slowed:
            reasons = ", ".join(sorted(set().union(*slowed.values())))
            counted = "1 scenario" if len(slowed) == 1 else f"{len(slowed)} scenarios"
            yield f"the GPU throttled its clocks ({reasons}) in {counted} of the {side}, such as {next(iter(slowed))}"


def _reasons(rows: Sequence[Row]) -> set[str]:
    return {reason for row in rows for reason in row.text("gpu_throttle_reasons").split(",") if reason}
