"""The decision rule: what is flagged, what is confirmed, and what too few processes cannot say."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from quantbench.core.errors import UsageError
from quantbench.core.verdict import Comparand, Finding, Rule, Side, Verdict, judge, suspects

RULE = Rule()


def side(seed: int, *, factor: float = 1.0, ratio_factor: float | None = None, count: int = 5, noise: float = 0.005) -> Side:
    """Processes whose raw figures move four times as much as their ratios."""
    rng = np.random.default_rng(seed)
    mood = np.exp(rng.normal(0, 4 * noise, count))
    ratios = np.exp(rng.normal(0, noise, count)) * (factor if ratio_factor is None else ratio_factor)
    return Side(raws=tuple(100 * factor * mood), ratios=tuple(0.8 * ratios))


def cell(name: str = "canary/a/ten", *, factor: float = 1.0, again: float | None = None, **other: float) -> Comparand:
    return Comparand(
        name=name, better="higher", baseline=side(1), candidate=side(2, factor=factor, **other),
        again=None if again is None else side(3, factor=again, **other),
    )  # fmt: skip


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


def test_a_slowdown_is_suspect_until_it_was_measured_again() -> None:
    first = only(judge([cell(factor=0.9)]))
    assert first.verdict == Verdict.SUSPECT_WORSE
    assert first.gate == "ratio"
    assert first.change == pytest.approx(-0.1, abs=0.02)
    assert suspects([first]) == [first.name]
    assert only(judge([cell(factor=0.9, again=0.9)])).verdict == Verdict.WORSE
    assert only(judge([cell(factor=0.9, again=1.0)])).verdict == Verdict.SAME
    assert only(judge([cell(factor=0.9, again=1.1)])).verdict == Verdict.SAME


def test_a_speedup_is_better_and_a_longer_time_is_worse() -> None:
    assert only(judge([cell(factor=1.1, again=1.1)])).verdict == Verdict.BETTER
    seconds = replace(cell(factor=1.1, again=1.1), better="lower")
    assert only(judge([seconds])).verdict == Verdict.WORSE


def test_what_slows_variant_and_anchor_alike_is_seen_by_the_raw_gate_only_where_it_is_wide() -> None:
    small = cell(factor=0.95, ratio_factor=1.0, again=0.95)
    assert only(judge([small])).verdict == Verdict.SAME
    large = cell(factor=0.6, ratio_factor=1.0, again=0.6)
    found = only(judge([large]))
    assert (found.verdict, found.gate) == (Verdict.WORSE, "raw")


def test_a_significant_change_below_the_least_one_is_the_same() -> None:
    exact = cell(factor=1 - RULE.ratio_change / 2, noise=0.00001)
    exact = replace(exact, baseline=side(1, noise=0.00001))
    found = only(judge([exact]))
    assert found.p_value is not None
    assert found.p_value < RULE.alpha
    assert found.verdict == Verdict.SAME
    assert found.mde == pytest.approx(RULE.ratio_change)


def test_too_few_processes_say_nothing() -> None:
    few = replace(cell(factor=0.5), candidate=side(2, factor=0.5, count=RULE.min_processes - 1))
    found = judge([few, cell("other", factor=0.9)])
    assert [each.verdict for each in found] == [Verdict.INSUFFICIENT, Verdict.SUSPECT_WORSE]
    assert found[0].change is None


@pytest.mark.parametrize("count", [0, 1, 2])  # one, where other work disturbed all others, has no spread
def test_a_second_measurement_of_too_few_processes_says_nothing(count: int) -> None:
    again = replace(cell(factor=0.9), again=side(3, factor=0.9, count=count))
    assert only(judge([again])).verdict == Verdict.SUSPECT_WORSE


def test_faster_than_a_slowed_anchor_is_still_slower() -> None:
    slower = cell(factor=0.6, ratio_factor=1.3, again=0.6)
    assert only(judge([slower])).verdict == Verdict.WORSE
    unconfirmed = replace(cell(factor=0.6, ratio_factor=0.8), again=side(3, factor=0.6, ratio_factor=1.0))
    found = only(judge([unconfirmed]))
    assert (found.verdict, found.gate) == (Verdict.WORSE, "raw")


def test_two_cells_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two cells have the same name"):
        judge([cell(), cell()])


def test_a_variant_that_is_its_own_anchor_has_the_raw_gate_only() -> None:
    own = cell(factor=0.5, again=0.5)
    bare = {name: Side(raws=getattr(own, name).raws, ratios=()) for name in ("baseline", "candidate")}
    again = Side(raws=side(3, factor=0.5).raws, ratios=())
    found = only(judge([replace(own, **bare, again=again)]))
    assert (found.verdict, found.gate) == (Verdict.WORSE, "raw")


def test_p_of_a_single_cell_is_students_on_logarithms_corrected_over_both_gates() -> None:
    one = cell(factor=0.97)
    found = only(judge([one]))
    by_gate = [
        float(stats.ttest_ind(np.log(one.candidate.values(gate)), np.log(one.baseline.values(gate)), equal_var=True).pvalue)
        for gate in ("ratio", "raw")
    ]
    assert found.p_value == pytest.approx(min(1.0, 2 * min(by_gate)))
    difference = fmean(map(math.log, one.candidate.ratios)) - fmean(map(math.log, one.baseline.ratios))
    assert found.change == pytest.approx(math.exp(difference) - 1)


def test_variances_are_moderated_as_limma_does_it() -> None:
    """Against the closed form: with d0 and s02 known from many cells, p of the t with d0 + d degrees."""
    rng = np.random.default_rng(0)
    d0, s02, cells = 6.0, 0.02**2, []
    for number in range(600):
        sigma = math.sqrt(d0 * s02 / rng.chisquare(d0))
        sides = [Side(raws=(), ratios=tuple(np.exp(rng.normal(0, sigma, 5)))) for _ in range(2)]
        cells.append(Comparand(name=str(number), better="higher", baseline=sides[0], candidate=sides[1]))
    loose = Rule(alpha=0.99, ratio_change=0.0)
    found = judge(cells, loose)
    smallest = min(range(len(cells)), key=lambda index: found[index].p_value or 0.0)
    one = cells[smallest]
    first, second = np.log(one.candidate.ratios), np.log(one.baseline.ratios)
    pooled = (4 * first.var(ddof=1) + 4 * second.var(ddof=1)) / 8
    error = math.sqrt((d0 * s02 + 8 * pooled) / (d0 + 8) * (2 / 5))
    expected = len(cells) * 2 * stats.t.sf(abs(first.mean() - second.mean()) / error, d0 + 8)
    assert found[smallest].p_value == pytest.approx(min(1.0, expected), rel=0.5)


def test_many_cells_share_one_error_rate() -> None:
    """Over matrices in which nothing changed, hardly one has a cell that is even suspect."""
    matrices = 100
    alarms = 0
    for number in range(matrices):
        cells = [
            Comparand(name=str(index), better="higher", baseline=side(base), candidate=side(base + 1))
            for index, base in enumerate(range(1000 * number, 1000 * number + 40, 2))
        ]
        alarms += bool(suspects(judge(cells)))
    assert alarms <= stats.binom.ppf(0.999, matrices, RULE.alpha)


def test_equal_figures_are_the_same_and_unlike_ones_without_spread_are_not() -> None:
    flat = Side(raws=(10.0,) * 5, ratios=(0.5,) * 5)
    slower = Side(raws=(5.0,) * 5, ratios=(0.25,) * 5)
    same = only(judge([Comparand(name="a", better="higher", baseline=flat, candidate=flat)]))
    assert (same.verdict, same.p_value, same.change) == (Verdict.SAME, 1.0, 0.0)
    assert only(judge([Comparand(name="a", better="higher", baseline=flat, candidate=slower)])).verdict == Verdict.SUSPECT_WORSE


@given(st.floats(0.5, 2.0), st.integers(0, 50))
def test_the_unit_of_the_figures_does_not_matter(scale: float, seed: int) -> None:
    one = Comparand(name="a", better="higher", baseline=side(seed), candidate=side(seed + 1, factor=0.93))
    scaled = {
        name: Side(raws=tuple(scale * value for value in each.raws), ratios=tuple(scale * value for value in each.ratios))
        for name, each in (("baseline", one.baseline), ("candidate", one.candidate))
    }
    first, second = only(judge([one])), only(judge([replace(one, **scaled)]))
    assert first.verdict == second.verdict
    assert first.change == pytest.approx(second.change)
    assert first.p_value == pytest.approx(second.p_value)


@pytest.mark.parametrize("bad", [{"min_processes": 1}, {"alpha": 0.0}, {"power": 1.0}, {"ratio_change": -0.1}])
def test_bounds_that_cannot_be_kept_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        Rule(**bad)  # type: ignore[arg-type]
