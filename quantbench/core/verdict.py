"""The decision rule of a comparison: whether a speed changed between two sets of fresh processes. Pure functions.

The unit is a fresh process, never a round: rounds of one process agree with each other far better than processes do, and tests
on rounds raise false alarms. A cell gates on the ratio to its anchor, which varies little between processes, and on the raw
figure with a wider bound, since what slows variant and anchor alike cancels in the ratio. Five processes say little about their
own spread, so each cell's variance is moderated by those of all others (Smyth 2004). Both gates of all cells share one error
rate (Holm), and a flagged cell counts only after it has been measured again. Processes of one run share what shifted the whole
run, so their cells are judged by the rest of their change (``quantbench.core.run_effect``).
``bench/harness/decision_rule.py`` has the evidence for the defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean, variance
from typing import Literal

from quantbench.core.errors import UsageError
from quantbench.core.run_effect import common_shifts
from quantbench.core.statistics import holm, minimum_detectable_effect

GateName = Literal["ratio", "raw"]


class Verdict(StrEnum):
    """The outcome for a cell. A suspect was flagged and must be measured again before it counts."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    SUSPECT_BETTER = "suspect-better"
    SUSPECT_WORSE = "suspect-worse"
    INSUFFICIENT = "insufficient data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One value per fresh process: ``raws`` as measured (tokens/s, or s), ``ratios`` to the anchor of the same process.

    ``runs`` is how many runs the processes come from; None where each is a run of its own.
    """

    raws: tuple[float, ...]
    ratios: tuple[float, ...]
    runs: int | None = None

    def values(self, gate: GateName) -> tuple[float, ...]:
        """The values that a gate judges."""
        return self.ratios if gate == "ratio" else self.raws


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparand:
    """A scenario's figure on both sides; ``again`` are further processes of the candidate, started after it was flagged."""

    name: str
    better: Literal["higher", "lower"]
    baseline: Side
    candidate: Side
    again: Side | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The bounds. Changes are relative: 0.05 is 5 %.

    ``min_processes`` are needed on each side; ``alpha`` is the family-wise error rate of one pass over the matrix,
    ``confirm_alpha`` the level at which the second measurement of a flagged cell must differ as well; ``ratio_change`` and
    ``raw_change`` are the smallest changes that count, however significant; ``power`` is that of the minimum detectable effect.
    """

    min_processes: int = 5
    alpha: float = 0.05
    confirm_alpha: float = 0.05
    ratio_change: float = 0.03
    raw_change: float = 0.15
    power: float = 0.8

    def __post_init__(self) -> None:
        """Raise UsageError for bounds that no comparison can meet."""
        if self.min_processes < 2:
            raise UsageError(f"min_processes is {self.min_processes}; a spread takes at least 2 processes per side")
        for name in ("alpha", "confirm_alpha", "power"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name):g}; give a probability between 0 and 1")
        for name in ("ratio_change", "raw_change"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name):g}; give a relative change such as 0.05")

    def least(self, gate: GateName) -> float:
        """The smallest change that a gate flags."""
        return self.ratio_change if gate == "ratio" else self.raw_change


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found for a cell.

    ``change`` is candidate over baseline minus 1 (geometric means) for the gate that decided, ``p_value`` its adjusted p;
    ``mde`` is the smallest change that would have been found with the rule's power, given the observed spread. All are None if
    there were too few processes.
    """

    name: str
    verdict: Verdict
    gate: GateName
    change: float | None = None
    p_value: float | None = None
    mde: float | None = None
    common: float | None = None
    """Relative change of all cells, if that alone prevents a verdict; more runs would allow one."""


@dataclass(frozen=True, slots=True)
class _Test:
    """A t-test on logarithms: the difference of means, its standard error, degrees of freedom and two-sided p."""

    difference: float
    error: float
    degrees: float
    p_value: float

    @classmethod
    def of(cls, difference: float, error: float, degrees: float) -> _Test:
        """The test of a difference; with a standard error of 0, p is 1 for no difference and 0 for any other."""
        from scipy.special import stdtr

        if not error:
            return cls(difference, 0.0, degrees, 0.0 if difference else 1.0)
        return cls(difference, error, degrees, 2 * float(stdtr(degrees, -abs(difference) / error)))


@dataclass(frozen=True, slots=True)
class _Prior:
    """What the variances of a gate's cells have in common: ``variance``, which counts as ``degrees`` of freedom."""

    variance: float = 0.0
    degrees: float = 0.0


_GATES: tuple[GateName, ...] = ("ratio", "raw")
_ORDER = (Verdict.WORSE, Verdict.SUSPECT_WORSE, Verdict.BETTER, Verdict.SUSPECT_BETTER, Verdict.SAME)
"""If both gates flag a cell, the first of these verdicts wins: a cell that only outruns a slowed anchor is still slower."""

_LEAST_SHARED = 4
"""Fewer cells say nothing about how variances vary."""

_MOST_DEGREES = 1000.0
_NEWTON_STEPS = 20


def judge(cells: Sequence[Comparand], rule: Rule | None = None) -> list[Finding]:
    """A finding for each cell, in order.

    A cell is flagged by a gate whose change is at least the rule's and whose p, by a moderated t-test on the logarithms of the
    processes' values and Holm's correction over both gates of all cells, is below ``alpha``. With ``again`` it is better or
    worse if the second measurement agrees, at ``confirm_alpha``; else it is the same. Without ``again`` it is suspect.
    UsageError if two cells have the same name.
    """
    rule = rule or Rule()
    if len({cell.name for cell in cells}) < len(cells):
        raise UsageError("two cells have the same name; name each scenario and metric only once")
    enough = [cell for cell in cells if _enough(cell, rule)]
    priors = {gate: _prior([cell for cell in enough if gate in _usable(cell)], gate) for gate in _GATES}
    first = _tests(enough, lambda cell: cell.candidate, priors)
    second = _tests([cell for cell in enough if cell.again], lambda cell: cell.again or cell.candidate, priors)
    beside = {key: test.beside for key, test in first.items()}
    adjusted = dict(zip(first, holm([test.p_value for test in beside.values()]), strict=True))
    as_measured = dict(zip(first, holm([test.measured.p_value for test in first.values()]), strict=True))
    findings = []
    for cell in cells:
        if cell not in enough:
            findings.append(Finding(name=cell.name, verdict=Verdict.INSUFFICIENT, gate="ratio"))
            continue
        own = {gate: beside[cell.name, gate] for gate in _usable(cell)}
        again = {gate: _again(cell, gate, second, rule) for gate in own}
        finding = _finding(cell, own, adjusted, again, rule)
        if finding.verdict is Verdict.SAME:
            finding = _with_common(finding, {gate: first[cell.name, gate] for gate in own}, as_measured, rule)
        findings.append(finding)
    return findings


@dataclass(frozen=True, slots=True)
class _Looked:
    """A test as measured, and relative to the shift of all cells; ``open_shift`` (log) may or may not be the run's."""

    measured: _Test
    beside: _Test
    open_shift: float | None


def _tests(
    cells: Sequence[Comparand], side: Callable[[Comparand], Side], priors: Mapping[GateName, _Prior]
) -> dict[tuple[str, GateName], _Looked]:
    """A test of every cell and gate of ``side`` against the baseline, where it has a spread."""
    found = {}
    for gate in _GATES:
        usable = [cell for cell in cells if gate in _usable(cell) and len(side(cell).values(gate)) > 1]
        measured = [_t_test(side(cell), cell.baseline, gate, priors[gate]) for cell in usable]
        shared = [_runs(cell.baseline, side(cell), gate) for cell in usable]
        shifts = common_shifts([test.difference for test in measured], [test.error for test in measured], shared)
        for cell, test, shift in zip(usable, measured, shifts, strict=True):
            beside = _Test.of(test.difference - shift.value, math.hypot(test.error, shift.error), test.degrees)
            found[cell.name, gate] = _Looked(test, beside if shift.removed else test, shift.value if shift.open else None)
    return {(cell.name, gate): found[cell.name, gate] for cell in cells for gate in _GATES if (cell.name, gate) in found}


def _runs(first: Side, second: Side, gate: GateName) -> tuple[int, int] | None:
    """How many runs the processes of each side come from; None if every process is a run of its own."""
    if first.runs is None and second.runs is None:
        return None
    return first.runs or len(first.values(gate)), second.runs or len(second.values(gate))


def _with_common(
    finding: Finding, looked: Mapping[GateName, _Looked], adjusted: Mapping[tuple[str, GateName], float], rule: Rule
) -> Finding:
    """The finding; insufficient if the cell certainly changed, but only together with all others, as it does between runs."""
    for gate, each in looked.items():
        change = math.expm1(each.measured.difference)
        if each.open_shift is not None and adjusted[finding.name, gate] < rule.alpha and abs(change) >= rule.least(gate):
            return replace(
                finding, verdict=Verdict.INSUFFICIENT, gate=gate, change=change, common=math.expm1(each.open_shift)
            )
    return finding


def suspects(findings: Iterable[Finding]) -> list[str]:
    """Names of the cells that must be measured again."""
    return [each.name for each in findings if each.verdict in (Verdict.SUSPECT_BETTER, Verdict.SUSPECT_WORSE)]


def _finding(
    cell: Comparand,
    tests: Mapping[GateName, _Test],
    adjusted: Mapping[tuple[str, GateName], float],
    again: Mapping[GateName, _Test | None],
    rule: Rule,
) -> Finding:
    judged = {
        gate: _verdict(cell, test.difference, again[gate], gate, rule)
        for gate, test in tests.items()
        if adjusted[cell.name, gate] < rule.alpha and abs(math.expm1(test.difference)) >= rule.least(gate)
    }
    gate = min(judged, key=lambda each: _ORDER.index(judged[each])) if judged else next(iter(tests))
    test = tests[gate]
    effect = minimum_detectable_effect(test.error, test.degrees, rule.alpha / len(adjusted), rule.power)
    return Finding(
        name=cell.name,
        verdict=judged.get(gate, Verdict.SAME),
        gate=gate,
        change=math.expm1(test.difference),
        p_value=adjusted[cell.name, gate],
        mde=max(math.expm1(effect), rule.least(gate)),
    )


def _verdict(cell: Comparand, difference: float, again: _Test | None, gate: GateName, rule: Rule) -> Verdict:
    better = (difference > 0) == (cell.better == "higher")
    if again is None:
        return Verdict.SUSPECT_BETTER if better else Verdict.SUSPECT_WORSE
    confirmed = again.p_value < rule.confirm_alpha and abs(math.expm1(again.difference)) >= rule.least(gate)
    if not confirmed or again.difference * difference < 0:
        return Verdict.SAME
    return Verdict.BETTER if better else Verdict.WORSE


def _again(cell: Comparand, gate: GateName, tests: Mapping[tuple[str, GateName], _Looked], rule: Rule) -> _Test | None:
    """The test of the second measurement against the baseline; None if it has too few processes."""
    if cell.again is None or len(cell.again.values(gate)) < rule.min_processes:
        return None
    return tests[cell.name, gate].beside


def _usable(cell: Comparand) -> tuple[GateName, ...]:
    """The gates that have values: a variant without an anchor, or that is its own anchor, has no ratio."""
    return tuple(gate for gate in _GATES if cell.baseline.values(gate) and cell.candidate.values(gate))


def _enough(cell: Comparand, rule: Rule) -> bool:
    sides = (cell.baseline, cell.candidate)
    gates = _usable(cell)
    return bool(gates) and all(len(side.values(gate)) >= rule.min_processes for side in sides for gate in gates)


def _logs(candidate: Side, baseline: Side, gate: GateName) -> tuple[list[float], list[float]]:
    first, second = ([math.log(value) for value in side.values(gate)] for side in (candidate, baseline))
    return first, second


def _pooled(first: Sequence[float], second: Sequence[float]) -> tuple[float, int]:
    """The variance that two samples share, and its degrees of freedom."""
    degrees = len(first) + len(second) - 2
    return (_squares(first) + _squares(second)) / degrees, degrees


def _squares(values: Sequence[float]) -> float:
    """The squared deviations from the mean, summed; exactly 0 for equal values. ``statistics`` does it in fractions."""
    mean = fmean(values)
    return math.fsum((value - mean) ** 2 for value in values) if min(values) < max(values) else 0.0


def _t_test(candidate: Side, baseline: Side, gate: GateName, prior: _Prior) -> _Test:
    """The moderated t-test of Smyth (2004), Statistical Applications in Genetics and Molecular Biology 3(1), Article 3.

    The pooled variance s2 with d degrees of freedom becomes (d0 s02 + d s2) / (d0 + d), with d0 + d degrees. Equal values on
    both sides have p 1; different values without any spread have p 0.
    """
    first, second = _logs(candidate, baseline, gate)
    difference = fmean(first) - fmean(second)
    own, degrees = _pooled(first, second)
    total = prior.degrees + degrees
    shared = (prior.degrees * prior.variance + degrees * own) / total
    error = math.sqrt(shared * (1 / len(first) + 1 / len(second)))
    return _Test.of(difference, error, total)


def _prior(cells: Sequence[Comparand], gate: GateName) -> _Prior:
    """Smyth's estimate of s02 and d0 from the mean and the variance of the logarithms of the cells' own variances.

    Nothing is shared if fewer than ``_LEAST_SHARED`` cells have a spread.
    """
    from scipy.special import digamma, polygamma

    found = [_pooled(*_logs(cell.candidate, cell.baseline, gate)) for cell in cells]
    found = [(own, degrees) for own, degrees in found if own > 0]
    if len(found) < _LEAST_SHARED:
        return _Prior()
    logs = [math.log(own) - float(digamma(degrees / 2)) + math.log(degrees / 2) for own, degrees in found]
    excess = variance(logs) - fmean(float(polygamma(1, degrees / 2)) for _, degrees in found)
    if excess <= 0:
        return _Prior(variance=math.exp(fmean(logs)), degrees=_MOST_DEGREES)
    degrees = min(2 * _inverse_trigamma(excess), _MOST_DEGREES)
    return _Prior(variance=math.exp(fmean(logs) + float(digamma(degrees / 2)) - math.log(degrees / 2)), degrees=degrees)


def _inverse_trigamma(value: float) -> float:
    """X with trigamma(x) = ``value``, by Newton's method on 1 / trigamma, which is nearly linear (Smyth 2004, appendix)."""
    from scipy.special import polygamma

    x = 0.5 + 1 / value
    for _ in range(_NEWTON_STEPS):
        trigamma = float(polygamma(1, x))
        x += trigamma * (1 - trigamma / value) / float(polygamma(2, x))
    return x
