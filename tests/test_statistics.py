"""Medians, intervals and clustered errors against scipy, numpy and closed forms."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quantbench.core.statistics import (
    Difference,
    bca_interval,
    blocks,
    holm,
    mad,
    mean_by_cluster,
    mean_interval,
    median_interval,
    minimum_detectable_effect,
    paired_difference,
    percentile,
    t_interval,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

numbers = st.floats(-1e6, 1e6)
samples = st.lists(numbers, min_size=1, max_size=60)
clustered = st.lists(st.tuples(numbers, st.integers(0, 6)), min_size=1, max_size=60)


@given(samples, st.floats(0, 1))
def test_percentile_is_numpys_quantile(values: list[float], fraction: float) -> None:
    import numpy as np

    assert percentile(values, fraction) == pytest.approx(float(np.quantile(values, fraction)), rel=1e-9, abs=1e-6)


@given(samples)
def test_percentile_one_half_is_the_median(values: list[float]) -> None:
    assert percentile(values, 0.5) == pytest.approx(statistics.median(values), rel=1e-12, abs=1e-9)


@given(samples)
def test_mad_is_scipys(values: list[float]) -> None:
    """Without its scale, which is the exact 1.482602 there and the customary 1.4826 here."""
    from scipy.stats import median_abs_deviation

    assert mad(values) == pytest.approx(1.4826 * float(median_abs_deviation(values)), rel=1e-12, abs=1e-9)


def _binomial_depth(count: int, confidence: float) -> int:
    """The deepest k with P(k-th smallest <= median <= k-th largest) >= confidence, from scipy's binomial distribution."""
    from scipy.stats import binom

    depths = [depth for depth in range(1, count // 2 + 1) if 1 - 2 * binom.cdf(depth - 1, count, 0.5) >= confidence]
    return max(depths, default=0)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_median_interval_has_the_binomial_coverage(confidence: float) -> None:
    """Over the ranks 1 to n, the ends of the interval are the ranks themselves."""
    for count in range(1, 130):
        depth = _binomial_depth(count, confidence)
        expected = (depth, count + 1 - depth) if depth else None
        assert median_interval(range(1, count + 1), confidence) == expected, count


@given(st.integers(1, 3000), st.floats(0.05, 0.999))
def test_median_interval_covers_enough_and_no_narrower_pair_does(count: int, confidence: float) -> None:
    from scipy.stats import binom

    interval = median_interval(range(1, count + 1), confidence)
    depth = int(interval[0]) if interval else 0
    if depth:
        assert 1 - 2 * binom.cdf(depth - 1, count, 0.5) >= confidence - 1e-9
    if depth + 1 <= count // 2:
        assert 1 - 2 * binom.cdf(depth, count, 0.5) < confidence + 1e-9


@given(st.lists(numbers, max_size=5))
def test_fewer_than_six_values_have_no_interval_of_95_percent(values: list[float]) -> None:
    assert median_interval(values) is None


@given(st.lists(numbers, min_size=6, max_size=60), st.randoms())
def test_median_interval_holds_the_median_whatever_the_order(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    interval = median_interval(shuffled)
    assert interval is not None
    assert interval == median_interval(values)
    assert interval[0] <= statistics.median(values) <= interval[1]


def test_median_interval_covers_the_median_of_skewed_samples_often_enough() -> None:
    """2000 samples of 15 from an exponential distribution: exact coverage 96.5 %, simulation error 0.4 %."""
    import numpy as np
    from scipy.stats import binom

    rng = np.random.default_rng(5)
    covered = 0
    for sample in rng.exponential(size=(2000, 15)):
        low, high = median_interval(sample.tolist()) or (math.inf, -math.inf)
        covered += low <= math.log(2) <= high
    exact = 1 - 2 * binom.cdf(_binomial_depth(15, 0.95) - 1, 15, 0.5)
    assert covered / 2000 == pytest.approx(exact, abs=0.02)


@given(st.lists(numbers, min_size=2, max_size=60))
def test_one_value_a_cluster_gives_the_plain_standard_error(values: list[float]) -> None:
    from scipy.stats import sem

    mean, error = mean_by_cluster(values, range(len(values)))
    assert mean == pytest.approx(statistics.fmean(values), rel=1e-12, abs=1e-9)
    assert error == pytest.approx(float(sem(values)), rel=1e-9, abs=1e-6)


@given(clustered)
def test_clustered_error_is_that_of_an_intercept_only_regression(pairs: list[tuple[float, int]]) -> None:
    """The cluster-robust sandwich (X'X)^-1 X' G G' X (X'X)^-1 with C / (C - 1), as regression packages have it."""
    import numpy as np

    values = np.array([value for value, _ in pairs])
    labels = sorted({cluster for _, cluster in pairs})
    design = np.ones((len(pairs), 1))
    coefficient, *_ = np.linalg.lstsq(design, values, rcond=None)
    residuals = np.diag(values - design @ coefficient)
    members = np.array([[cluster == label for label in labels] for _, cluster in pairs], dtype=float)
    scores = design.T @ residuals @ members
    bread = np.linalg.inv(design.T @ design)
    mean, error = mean_by_cluster(values.tolist(), [cluster for _, cluster in pairs])
    assert mean == pytest.approx(float(coefficient[0]), rel=1e-9, abs=1e-6)
    if len(labels) < 2:
        assert error is None
    else:
        variance = bread @ (scores @ scores.T) @ bread * len(labels) / (len(labels) - 1)
        assert error == pytest.approx(math.sqrt(variance[0, 0]), rel=1e-6, abs=1e-6)


@given(st.lists(numbers, min_size=2, max_size=12), st.integers(2, 5))
def test_repeating_each_cluster_whole_tells_nothing_new(values: list[float], copies: int) -> None:
    """Positions of one prompt that all say the same count once: the error is that of the prompts' means."""
    repeated = [value for value in values for _ in range(copies)]
    clusters = [index for index in range(len(values)) for _ in range(copies)]
    plain = mean_by_cluster(values, range(len(values)))[1]
    assert mean_by_cluster(repeated, clusters)[1] == pytest.approx(plain, rel=1e-9, abs=1e-6)


def test_values_and_clusters_must_pair_up() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        mean_by_cluster([1.0, 2.0], [0])


# --- intervals of means, clustered


def _labels(sizes: Sequence[int]) -> list[int]:
    return [index for index, size in enumerate(sizes) for _ in range(size)]


def test_the_t_interval_is_that_of_a_table_of_t() -> None:
    """Means 1, 2, 3, 4 of two values each: 2.5 -+ 3.182446 x 1.290994 / 2, with t(0.975; 3) from a printed table."""
    values = [0.5, 1.5, 2.0, 2.0, 2.0, 4.0, 5.0, 3.0]
    assert t_interval(values, _labels([2, 2, 2, 2])) == pytest.approx((2.5 - 2.054260, 2.5 + 2.054260), abs=1e-6)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=20), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_t_interval_of_equal_clusters_is_scipys_of_their_means(pairs: list[tuple[float, float]], level: float) -> None:
    import numpy as np
    from scipy.stats import sem, t

    means = [statistics.fmean(pair) for pair in pairs]
    error = float(sem(means))
    expected = t.interval(level, len(means) - 1, loc=np.mean(means), scale=error) if error else (means[0], means[0])
    found = t_interval([value for pair in pairs for value in pair], _labels([2] * len(pairs)), level)
    assert found == pytest.approx(tuple(map(float, expected)), rel=1e-7, abs=1e-6)


def test_ten_normal_clusters_are_covered_as_often_as_promised() -> None:
    """4000 samples of ten prompts of four correlated positions, within three errors of the simulation (0.34 points)."""
    import numpy as np

    rng = np.random.default_rng(11)
    labels = _labels([4] * 10)
    samples = 3.0 + rng.normal(0, 1, (4000, 10, 1)) + rng.normal(0, 0.5, (4000, 10, 4))
    ends = [t_interval(sample.ravel().tolist(), labels) for sample in samples]
    held = sum(low <= 3.0 <= high for low, high in ends)
    assert held / len(ends) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 4000))


def test_positions_taken_for_prompts_would_cover_far_too_seldom() -> None:
    """What clustering is for."""
    import numpy as np

    rng = np.random.default_rng(11)
    samples = 3.0 + rng.normal(0, 1, (500, 10, 1)) + rng.normal(0, 0.5, (500, 10, 4))
    ends = [t_interval(sample.ravel().tolist(), range(40)) for sample in samples]
    assert sum(low <= 3.0 <= high for low, high in ends) / len(ends) < 0.8


def _slow_bca(groups: Sequence[Sequence[float]], level: float) -> tuple[float, float]:
    """BCa of the mean over all values by Efron's formulas, from every one of the n ** n resamples of whole groups."""
    normal = statistics.NormalDist()
    totals = [(math.fsum(group), len(group)) for group in groups]

    def ratio(drawn: Sequence[tuple[float, int]]) -> float:
        return math.fsum(total for total, _ in drawn) / sum(count for _, count in drawn)

    mean = ratio(totals)
    resamples = sorted(ratio(drawn) for drawn in itertools.product(totals, repeat=len(totals)))
    below = sum(each < mean - 1e-12 for each in resamples)
    equal = sum(abs(each - mean) <= 1e-12 for each in resamples)
    bias = normal.inv_cdf((below + equal / 2) / len(resamples))
    left_out = [ratio(totals[:index] + totals[index + 1 :]) for index in range(len(totals))]
    centre = statistics.fmean(left_out)
    cubes = math.fsum((centre - each) ** 3 for each in left_out)
    acceleration = cubes / (6 * math.fsum((centre - each) ** 2 for each in left_out) ** 1.5)

    def end(tail: float) -> float:
        moved = bias + normal.inv_cdf(tail)
        return percentile(resamples, normal.cdf(bias + moved / (1 - acceleration * moved)))

    return end((1 - level) / 2), end((1 + level) / 2)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bca_is_efrons_over_every_possible_resample(level: float) -> None:
    """Six skewed groups of unequal size. 9999 random resamples differ from all 46656 by some hundredths of the width."""
    groups = [[0.1, 0.3], [0.2], [0.9, 0.4, 0.35], [1.7], [0.25, 0.05, 0.6], [4.0, 2.5]]
    values = [value for group in groups for value in group]
    low, high = _slow_bca(groups, level)
    found = bca_interval(values, _labels([len(group) for group in groups]), level)
    assert found == pytest.approx((low, high), abs=0.04 * (high - low))
    mean = statistics.fmean(values)
    assert high - mean > 1.3 * (mean - low), "the example is skewed, and a symmetric interval would not do"


def test_bca_of_many_normal_clusters_is_nearly_the_t_interval() -> None:
    import numpy as np

    values = np.random.default_rng(2).normal(5, 1, 400).tolist()
    low, high = t_interval(values, range(400))
    assert bca_interval(values, range(400)) == pytest.approx((low, high), abs=0.05 * (high - low))


@pytest.mark.parametrize("interval", [t_interval, bca_interval])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 1000.0), (250.0, 0.0), (0.003, -2.0)])
def test_intervals_move_and_stretch_with_the_values(interval: Callable[..., Any], scale: float, shift: float) -> None:
    import numpy as np

    rng = np.random.default_rng(4)
    values = rng.lognormal(size=120)
    labels = _labels([3] * 40)
    low, high = interval(values.tolist(), labels)
    moved = interval((scale * values + shift).tolist(), labels)
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-9 * (scale + abs(shift)))


@given(clustered)
def test_an_interval_holds_the_mean_and_is_none_of_one_cluster(pairs: list[tuple[float, int]]) -> None:
    values, labels = [value for value, _ in pairs], [label for _, label in pairs]
    found = mean_interval(values, labels)
    if len(set(labels)) < 2:
        assert found is None
    else:
        assert found is not None
        assert (found.kind, found.few_clusters) == ("t", True)
        slack = 1e-9 * max(map(abs, values))
        assert found.low - slack <= statistics.fmean(values) <= found.high + slack


@pytest.mark.parametrize(("count", "kind"), [(29, "t"), (30, "bca")])
def test_from_30_clusters_on_whole_clusters_are_resampled(count: int, kind: str) -> None:
    import numpy as np

    values = np.random.default_rng(count).lognormal(size=2 * count).tolist()
    labels = _labels([2] * count)
    found = mean_interval(values, labels)
    assert found is not None
    assert (found.kind, found.few_clusters) == (kind, kind == "t")
    assert (found.low, found.high) == {"t": t_interval, "bca": bca_interval}[kind](values, labels)


def test_equal_input_and_seed_give_equal_ends_and_another_seed_nearly() -> None:
    import numpy as np

    values = np.random.default_rng(1).lognormal(size=50).tolist()
    first, again, other = (mean_interval(values, range(50), seed=seed) for seed in (0, 0, 1))
    assert first is not None
    assert other is not None
    assert first == again != other
    assert (other.low, other.high) == pytest.approx((first.low, first.high), abs=0.05 * (first.high - first.low))


@pytest.mark.parametrize("count", [2, 29, 30, 40])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_clusters_that_all_say_the_same_leave_a_point(count: int, value: float) -> None:
    found = mean_interval([value] * 3 * count, _labels([3] * count))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((value, value), rel=1e-12)


def test_one_cluster_has_no_t_interval() -> None:
    with pytest.raises(ValueError, match="one cluster"):
        t_interval([1.0, 2.0], [3, 3])


# --- differences


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=40))
def test_a_paired_difference_is_scipys_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    from scipy.stats import ttest_rel

    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    deltas = [one - other for one, other in pairs]
    assume(statistics.pstdev(deltas) > 1e-9 * max(map(abs, (*first, *second, 1.0))))
    found = paired_difference(first, second, range(len(pairs)))
    expected = ttest_rel(first, second)
    assert found is not None
    assert found.p_value == pytest.approx(float(expected.pvalue), rel=1e-6, abs=1e-12)
    ends = expected.confidence_interval(0.95)
    width = float(ends.high - ends.low)
    assert (found.low, found.high) == pytest.approx((float(ends.low), float(ends.high)), rel=1e-7, abs=1e-6 * width)
    assert (found.clusters, found.few_clusters) == (len(pairs), len(pairs) < 30)


def test_correlated_positions_count_as_their_prompts() -> None:
    """Eight positions a prompt: the test is that of the prompts' mean differences."""
    import numpy as np
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(9)
    first = rng.lognormal(size=(12, 8))
    second = first - 0.1 - rng.normal(0, 0.3, (12, 1)) - rng.normal(0, 0.05, (12, 8))
    found = paired_difference(first.ravel().tolist(), second.ravel().tolist(), _labels([8] * 12))
    expected = ttest_1samp((first - second).mean(axis=1), 0)
    assert found is not None
    assert found.mean == pytest.approx(float((first - second).mean()))
    assert found.p_value == pytest.approx(float(expected.pvalue), rel=1e-9)


@given(st.lists(st.tuples(numbers, numbers, st.integers(0, 4)), min_size=1, max_size=40))
def test_the_other_way_round_it_is_the_same_difference_negated(rows: list[tuple[float, float, int]]) -> None:
    first, second, labels = (list(column) for column in zip(*rows, strict=True))
    one, other = paired_difference(first, second, labels), paired_difference(second, first, labels)  # type: ignore[arg-type]
    if one is None or other is None:
        assert one is other is None
        assert len(set(labels)) < 2
    else:
        assert (one.mean, one.low, one.high) == (-other.mean, -other.high, -other.low)
        assert (one.p_value, one.mde) == (other.p_value, other.mde)
        assert 0 <= one.p_value <= 1


@given(st.lists(numbers, min_size=2, max_size=40))
def test_equal_inputs_differ_by_exactly_nothing(values: list[float]) -> None:
    assert paired_difference(values, values, range(len(values))) == Difference(
        mean=0.0, low=0.0, high=0.0, p_value=1.0, mde=0.0, clusters=len(values), few_clusters=len(values) < 30
    )


def test_a_constant_difference_is_certain() -> None:
    found = paired_difference([3.0, 5.0, 9.0], [1.0, 3.0, 7.0], [0, 1, 2])
    assert found is not None
    assert (found.mean, found.low, found.high, found.p_value, found.mde) == (2.0, 2.0, 2.0, 0.0, 0.0)


@given(st.integers(1, 400), st.integers(1, 40))
def test_blocks_are_even_consecutive_and_no_shorter_than_asked(count: int, size: int) -> None:
    labels = blocks(count, size)
    sizes = [len(list(group)) for _, group in itertools.groupby(labels)]
    assert len(labels) == count
    assert labels == sorted(labels)
    assert len(sizes) == len(set(labels)) == max(1, count // size)
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(size, count)


# --- many tests at once


def _by_closed_testing(p_values: Sequence[float]) -> list[float]:
    """Holm by its definition: the largest Bonferroni-adjusted p of any set of hypotheses that the one is in."""
    indices = range(len(p_values))
    sets = [chosen for size in indices for chosen in itertools.combinations(indices, size + 1)]
    return [max(min(1.0, len(one) * min(p_values[each] for each in one)) for one in sets if index in one) for index in indices]


@given(st.lists(st.floats(0, 1), max_size=7))
def test_holm_is_closed_testing_with_bonferroni(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(_by_closed_testing(p_values), rel=1e-12, abs=0)


def test_holm_of_a_published_list() -> None:
    """The 15 p values of Benjamini and Hochberg (1995, section 4.1), where control of the family at 5 % finds three."""
    published = [
        0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0,
    ]  # fmt: skip
    found = holm(published)
    assert found[:5] == pytest.approx([0.0015, 0.0056, 0.0247, 0.1140, 0.2211])
    assert sum(each < 0.05 for each in found) == 3


@given(st.lists(st.floats(0, 1), max_size=60), st.randoms())
def test_holm_is_monotone_no_less_than_p_and_blind_to_order(p_values: list[float], random: Any) -> None:
    found = holm(p_values)
    assert all(p <= adjusted <= 1 for p, adjusted in zip(p_values, found, strict=True))
    by_p = [adjusted for _, adjusted in sorted(zip(p_values, found, strict=True))]
    assert by_p == sorted(by_p)
    order = list(range(len(p_values)))
    random.shuffle(order)
    assert holm([p_values[index] for index in order]) == [found[index] for index in order]


# --- minimum detectable effect


@pytest.mark.parametrize(("size", "groups"), [(33.36713, 1), (63.76576, 2)], ids=["one sample or pairs", "two samples"])
def test_the_detectable_effect_is_that_of_published_sample_sizes(size: float, groups: int) -> None:
    """Half a standard deviation at 5 % with 80 % power takes 33.37 pairs, or 63.77 a group (R's power.t.test)."""
    found = minimum_detectable_effect(math.sqrt(groups / size), groups * (size - 1))
    assert found == pytest.approx(0.5, abs=1e-5)


def test_of_many_clusters_it_is_the_sum_of_two_normal_quantiles() -> None:
    normal = statistics.NormalDist()
    assert minimum_detectable_effect(1.0, 1e5) == pytest.approx(normal.inv_cdf(0.975) + normal.inv_cdf(0.8), rel=1e-4)


@pytest.mark.parametrize(("alpha", "power"), [(0.05, 0.8), (0.01, 0.9), (0.1, 0.5)])
def test_it_falls_with_the_clusters_and_is_proportional_to_the_error(alpha: float, power: float) -> None:
    found = [minimum_detectable_effect(1.0, degrees, alpha, power) for degrees in (1, 2, 3, 5, 9, 29, 99, 999)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)
    assert minimum_detectable_effect(0.25, 9, alpha, power) == pytest.approx(0.25 * found[4])
    assert minimum_detectable_effect(0.0, 9, alpha, power) == 0.0


@pytest.mark.parametrize("degrees", [2, 9, 40])
def test_it_is_found_as_often_as_promised(degrees: int) -> None:
    """Power by integrating over the estimated error: P(|Z + effect| > t x s), with s from a chi distribution."""
    from scipy.integrate import quad
    from scipy.stats import chi, norm, t

    effect, bound = minimum_detectable_effect(1.0, degrees), float(t.ppf(0.975, degrees))

    def found(error: float) -> float:
        scaled = bound * error / math.sqrt(degrees)
        return float((norm.sf(scaled - effect) + norm.cdf(-scaled - effect)) * chi.pdf(error, degrees))

    assert quad(found, 0, math.inf)[0] == pytest.approx(0.8, abs=1e-6)
