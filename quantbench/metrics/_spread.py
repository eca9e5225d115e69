"""Shared by the metrics of timed rounds: how spreads, percentiles and intervals of medians are documented."""

from __future__ import annotations

from quantbench.core.record import Column
from quantbench.core.statistics import MAD_TO_SIGMA

SPREAD_SOURCE = "scipy.stats.median_abs_deviation, scale='normal'"
PERCENTILE_SOURCE = "numpy.percentile, method='linear'"
_INTERVAL = "no distribution assumed: order statistics, with binomial coverage"


def spread_formula(name: str) -> str:
    """The formula of the median absolute deviation of ``name``."""
    return f"{MAD_TO_SIGMA} * median(|{name} - median({name})|)"


def percentile_formula(name: str, fraction: float) -> str:
    """The formula of a percentile of ``name``."""
    return f"linear between the sorted {name} at {fraction} * (count - 1)"


def interval_columns(name: str, unit: str, of: str) -> tuple[Column, Column]:
    """The columns ``name_low`` and ``name_high``: the ends of the median's interval over ``of``."""
    low, high = (
        Column(
            f"{name}_{end}", unit, timed=True, doc=f"{which} end of the 95 % confidence interval of {name}",
            formula=f"k-th {order} of the {of}, largest k with 1 - 2 P(Binomial(count, 1/2) < k) >= 0.95", source=_INTERVAL,
        )
        for end, which, order in (("low", "lower", "smallest"), ("high", "upper", "largest"))
    )  # fmt: skip
    return low, high
