"""Medians, their confidence intervals and clustered standard errors, in plain Python so that a worker stays light."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

MAD_TO_SIGMA = 1.4826
"""Scales the median absolute deviation to the standard deviation of a normal distribution."""

P99_MIN_SAMPLES = 1000
"""A 99th percentile from fewer samples says nothing."""


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
