"""The statistics that ``llama-perplexity --kl-divergence`` prints for scored positions, as its source defines them.

``tools/perplexity/perplexity.cpp``, ``kl_divergence()``: errors treat tokens as independent; percentiles interpolate linearly
between float32 values. Sums are taken about the mean here: the same figures, without the cancellation of sum2 / n - mean^2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_POSITIONS = 100
"""The fewest scored tokens for which llama-perplexity prints statistics."""

PERCENTILES: Mapping[str, float] = {
    "p999": 0.999, "p99": 0.99, "p95": 0.95, "p90": 0.90, "p75": 0.75, "median": 0.5, "p25": 0.25, "p10": 0.10, "p05": 0.05,
    "p01": 0.01, "p001": 0.001,
}  # fmt: skip
"""Printed for the change of probability; for the KL divergence all but the quartiles are printed."""

_QUARTILES = ("p75", "p25")
_IID = "_se_iid"


def perplexity(nll: NDArray[Any]) -> dict[str, float]:
    """``ppl`` of the negative log-likelihoods, with its error for independent tokens."""
    return _likelihood("ppl", nll)


def statistics(columns: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Every printed statistic of ``nll``, ``nll_reference``, ``kld`` and ``top1``, under quantbench's column names.

    In nats and ratios, where the tool prints percent; the errors, which treat tokens as independent, end in ``_se_iid``. A
    correlation with a constant is NaN.
    """
    ours, theirs = columns["nll"], columns["nll_reference"]
    return {
        **perplexity(ours),
        **_likelihood("ppl_reference", theirs),
        **_paired(ours, theirs),
        **_divergence(columns["kld"]),
        **_probabilities(ours, theirs),
        **_same_top(columns["top1"]),
    }


def mean_and_error(values: NDArray[Any]) -> tuple[float, float]:
    """Mean and its standard error for independent values: the tool's ``mean_and_uncertainty``."""
    import numpy as np

    mean = float(np.mean(values, dtype=np.float64))
    spread = np.mean((values - mean) ** 2, dtype=np.float64)
    return mean, math.sqrt(spread / (len(values) - 1))


def percentile(ordered: NDArray[Any], fraction: float) -> float:
    """Linear interpolation between sorted float32 values, with every step in float32 as in the tool."""
    import numpy as np

    position = np.float32(fraction) * np.float32(len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    weight = position - np.float32(below)
    return float((np.float32(1) - weight) * ordered[below] + weight * ordered[above])


def _likelihood(name: str, nll: NDArray[Any]) -> dict[str, float]:
    mean, error = mean_and_error(nll)
    ppl = _exp(mean)
    return {name: ppl, f"{name}{_IID}": ppl * error}


def _paired(ours: NDArray[Any], theirs: NDArray[Any]) -> dict[str, float]:
    """Correlation, logarithm of the ratio, ratio and difference of the two perplexities."""
    import numpy as np

    (mean, error), (mean_reference, error_reference) = mean_and_error(ours), mean_and_error(theirs)
    ln_ratio, ln_error = mean_and_error(ours - theirs)
    covariance = float(np.mean((ours - mean) * (theirs - mean_reference), dtype=np.float64)) / (len(ours) - 1)
    ppl, ppl_reference = _exp(mean), _exp(mean_reference)
    ratio = _exp(ln_ratio)
    broken = math.isinf(ppl) or math.isinf(ppl_reference)
    difference_error = math.nan if broken else mean_and_error(ppl * ours - ppl_reference * theirs)[1]
    return {
        "nll_correlation": covariance / (error * error_reference) if error and error_reference else math.nan,
        "ln_ppl_ratio": ln_ratio,
        f"ln_ppl_ratio{_IID}": ln_error,
        "ppl_ratio": ratio,
        f"ppl_ratio{_IID}": ratio * ln_error,
        "ppl_difference": ppl - ppl_reference,
        f"ppl_difference{_IID}": difference_error,
    }


def _divergence(kld: NDArray[Any]) -> dict[str, float]:
    mean, error = mean_and_error(kld)
    ordered = _ordered(kld)
    kept = {name: fraction for name, fraction in PERCENTILES.items() if name not in _QUARTILES}
    return {"kld_mean": mean, f"kld_mean{_IID}": error, **_spread("kld", ordered, kept)}


def _probabilities(ours: NDArray[Any], theirs: NDArray[Any]) -> dict[str, float]:
    """Changes of the target's probability, variant minus reference."""
    import numpy as np

    change = np.exp(-ours) - np.exp(-theirs)
    mean, error = mean_and_error(change)
    square, square_error = mean_and_error(change**2)
    rms = math.sqrt(square)
    return {
        "delta_p_mean": mean,
        f"delta_p_mean{_IID}": error,
        **_spread("delta_p", _ordered(change), PERCENTILES),
        "delta_p_rms": rms,
        f"delta_p_rms{_IID}": 0.5 / rms * square_error if rms else 0.0,
    }


def _same_top(top1: NDArray[Any]) -> dict[str, float]:
    import numpy as np

    share = float(np.mean(top1, dtype=np.float64))
    return {"top1_agreement": share, f"top1_agreement{_IID}": math.sqrt(share * (1 - share) / (len(top1) - 1))}


def _ordered(values: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.sort(values.astype(np.float32))


def _spread(name: str, ordered: NDArray[Any], percentiles: Mapping[str, float]) -> dict[str, float]:
    """Extremes and percentiles of sorted values."""
    found = {f"{name}_{each}": percentile(ordered, fraction) for each, fraction in percentiles.items()}
    return {f"{name}_max": float(ordered[-1]), **found, f"{name}_min": float(ordered[0])}


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
