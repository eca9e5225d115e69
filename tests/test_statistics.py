"""Medians, intervals and clustered errors against scipy, numpy and closed forms."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.statistics import mad, mean_by_cluster, median_interval, percentile

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
