"""Medians, means, their confidence intervals and paired differences, clustered by prompt.

Plain Python where a worker needs it; numpy and scipy are imported by what needs them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

MAD_TO_SIGMA = 1.4826
"""Scales the median absolute deviation to the standard deviation of a normal distribution."""

P99_MIN_SAMPLES = 1000
"""A 99th percentile of fewer samples is meaningless."""

FEW_CLUSTERS = 30
"""With fewer clusters the BCa interval covers too rarely (measured by bench/harness/coverage.py)."""

RESAMPLES = 9999

_RESAMPLES_AT_ONCE = 500
_ROUNDING = 1e-12
"""Relative differences up to this may come from rounding alone."""


def mad(values: Sequence[float]) -> float:
    """Median absolute deviation, scaled by 1.4826."""
    middle = median(values)
    return MAD_TO_SIGMA * median(abs(value - middle) for value in values)


def percentile(values: Sequence[float], fraction: float) -> float:
    """Linear interpolation at ``fraction * (n - 1)``, as numpy's default and llama-perplexity do."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Distribution-free confidence interval of the median from order statistics.

    The widest-apart pair of order statistics (k-th smallest, k-th largest) whose binomial coverage
    1 - 2 P(Binomial(n, 1/2) < k) still reaches ``confidence``. None below 6 values at 95 %: no pair covers enough.
    """
    ordered = sorted(values)
    n = len(ordered)
    tail = 0.0
    depth = 0
    while depth < n // 2:
        tail += math.comb(n, depth) / 2**n
        if 1 - 2 * tail < confidence:
            break
        depth += 1
    return (ordered[depth - 1], ordered[n - depth]) if depth else None


def mean_by_cluster(values: Sequence[float], clusters: Sequence[int]) -> tuple[float, float | None]:
    """Mean over all values and its standard error clustered by ``clusters`` (prompts); the error is None below 2 clusters.

    Linearized (Taylor) estimator of a ratio of cluster totals: sum over clusters of (sum_c (x - mean))**2, times
    C / (C - 1), square root, divided by n.
    """
    n = len(values)
    mean = math.fsum(values) / n
    totals: dict[int, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        totals[cluster] = totals.get(cluster, 0.0) + (value - mean)
    count = len(totals)
    if count < 2:
        return mean, None
    spread = math.fsum(total**2 for total in totals.values()) * count / (count - 1)
    return mean, math.sqrt(spread) / n


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Confidence interval of a mean, in the values' unit; with ``few_clusters`` (below 30) it is a t interval."""

    low: float
    high: float
    few_clusters: bool
    kind: Literal["t", "bca"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Mean of paired differences with its confidence interval, in the values' unit.

    ``p_value`` tests for no difference, two-sided. ``mde`` is the smallest true difference that would be found with 80 % power:
    what "no difference found" leaves open.
    """

    mean: float
    low: float
    high: float
    p_value: float
    mde: float
    clusters: int
    few_clusters: bool


def mean_interval(values: Sequence[float], clusters: Sequence[int], confidence: float = 0.95, seed: int = 0) -> Interval | None:
    """Confidence interval of the mean over all values, clustered by ``clusters`` (prompts, or chunks of a text).

    Below 30 clusters it is ``t_interval``, from 30 on ``bca_interval``: bench/harness/README.md has the coverage of both. None
    below 2 clusters. If every cluster has the same mean, both ends are that mean.
    """
    count = len(set(clusters))
    if count < 2:
        return None
    if count < FEW_CLUSTERS:
        low, high = t_interval(values, clusters, confidence)
        return Interval(low=low, high=high, few_clusters=True, kind="t")
    low, high = bca_interval(values, clusters, confidence, seed)
    return Interval(low=low, high=high, few_clusters=False, kind="bca")


def t_interval(values: Sequence[float], clusters: Sequence[int], confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean over all values, from ``mean_by_cluster``'s error and clusters - 1 degrees of freedom.

    For clusters of equal size, it is the t interval of the clusters' means. ValueError below 2 clusters.
    """
    mean, error, degrees = _clustered(values, clusters)
    margin = t_quantile(degrees, confidence) * error
    return mean - margin, mean + margin


def bca_interval(
    values: Sequence[float], clusters: Sequence[int], confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """BCa bootstrap interval of the mean over all values, resampling whole clusters (Efron 1987; ``scipy.stats.bootstrap``).

    Each cluster is drawn as its sum and its count, and the mean is the ratio of their totals. Seeded: equal input gives equal
    ends. If every cluster has the same mean, both ends are that mean.
    """
    import numpy as np
    from scipy.stats import bootstrap

    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    mean = float(sums.sum() / counts.sum())
    if np.abs(sums - counts * mean).max() <= _ROUNDING * np.abs(sums).max():
        return mean, mean
    found = bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_RESAMPLES_AT_ONCE,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def paired_difference(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[int], confidence: float = 0.95
) -> Difference | None:
    """``first`` - ``second`` at the same positions, with a t test on clustered errors; None below 2 clusters.

    Values of one prompt are correlated, so prompts are the clusters; within a single prompt use ``blocks`` of its positions.
    The test is a t test even if every position is a cluster: it tests the mean, which is what is reported, and agrees with the
    interval. Wilcoxon's test assumes a distribution symmetric around 0, and differences of KLD are skewed.
    """
    if len(set(clusters)) < 2:
        return None
    mean, error, degrees = _clustered([one - other for one, other in zip(first, second, strict=True)], clusters)
    margin = t_quantile(degrees, confidence) * error
    return Difference(
        mean=mean,
        low=mean - margin,
        high=mean + margin,
        p_value=_p_value(mean, error, degrees),
        mde=minimum_detectable_effect(error, degrees, alpha=1 - confidence),
        clusters=degrees + 1,
        few_clusters=degrees + 1 < FEW_CLUSTERS,
    )


def blocks(count: int, size: int) -> list[int]:
    """Cluster labels of ``count`` positions of one prompt: consecutive, even blocks of at least ``size`` positions.

    Fewer than ``2 * size`` positions make a single block, which has no spread. The KLD of neighbouring positions has a
    correlation of about 0.1, and blocks of 16 hold nearly all of it: bench/harness/README.md.
    """
    number = max(count // size, 1)
    return [position * number // count for position in range(count)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number, step-down (Holm 1979), in the order given.

    The k-th smallest of m is multiplied by m - k + 1, is at least its predecessor and at most 1.
    """
    adjusted = [0.0] * len(p_values)
    reached = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = reached
    return adjusted


def minimum_detectable_effect(standard_error: float, degrees: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true effect that a two-sided t test finds with probability ``power``, in the unit of its standard error.

    Exact: standard error x the noncentrality at which a noncentral t with ``degrees`` of freedom falls outside
    +-t(1 - alpha / 2) with probability ``power`` (Cohen 1988, chapter 2). The usual sum of two t quantiles (Bloom 1995) is too
    small below 9 degrees, by 5 % at 2, and within 0.2 % from there on.
    """
    return standard_error * _noncentrality(degrees, alpha, power) if standard_error else 0.0


def _noncentrality(degrees: float, alpha: float, power: float) -> float:
    from scipy.special import nctdtrinc  # scipy.stats takes longer to import than all else that a report does with statistics

    return float(nctdtrinc(degrees, 1 - power, t_quantile(degrees, 1 - alpha)))  # the other tail is below 1e-7 here


def _clustered(values: Sequence[float], clusters: Sequence[int]) -> tuple[float, float, int]:
    """Mean, its clustered standard error and degrees of freedom."""
    mean, error = mean_by_cluster(values, clusters)
    if error is None:
        raise ValueError("one cluster has no spread between clusters")
    return mean, error, len(set(clusters)) - 1


def t_quantile(degrees: float, confidence: float = 0.95) -> float:
    """Half-width of the two-sided t interval, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + confidence / 2))


def _p_value(mean: float, error: float, degrees: float) -> float:
    """Two-sided p value of a mean of 0 by Student's t."""
    from scipy.special import stdtr

    if not error:
        return 0.0 if mean else 1.0
    return float(2 * stdtr(degrees, -abs(mean) / error))
