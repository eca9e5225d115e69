"""Teacher-forced distance to the reference on its own sampled continuations, whole vocabulary.

Definitions are llama-perplexity's (``--kl-divergence``); standard errors are clustered by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from quantbench.metrics import metric
from quantbench.record import Column, Missing, Value
from quantbench.statistics import P99_MIN_SAMPLES, mean_by_cluster
from quantbench.trace import Reference, Trace

_COLUMNS = (
    Column("scored_tokens", "tokens", kind="int", doc="positions compared"),
    Column("kld_mean", "nats", "lower", doc="mean KL(reference || variant)"),
    Column("kld_mean_se", "nats", doc="standard error of kld_mean"),
    Column("kld_median", "nats", "lower", doc="median KL divergence"),
    Column("kld_p99", "nats", "lower", doc="99th percentile of the KL divergence"),
    Column("kld_max", "nats", "lower", doc="largest KL divergence of a position"),
    Column("top1_agreement", "ratio", "higher", doc="share of positions where both put the same token first"),
    Column("top1_agreement_se", "ratio", doc="standard error of top1_agreement"),
    Column("delta_p_rms", "ratio", "lower", doc="root mean square change of the target token's probability"),
    Column("delta_p_rms_se", "ratio", doc="standard error of delta_p_rms"),
    Column("ppl", "ppl", "lower", doc="exp of the mean negative log-likelihood of the continuations"),
    Column("ppl_se", "ppl", doc="standard error of ppl"),
    Column("ppl_ratio", "ratio", "lower", doc="ppl over the reference's ppl, paired"),
    Column("ppl_ratio_se", "ratio", doc="standard error of ppl_ratio"),
)


@metric(*_COLUMNS)
def divergence(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """KL divergence, top-1 agreement, delta p and perplexity against the reference"""
    if trace.columns is None:
        none = Missing(trace.absent.get("columns", "no reference to compare with: it cannot open this checkpoint here"))
        return {column.name: none for column in _COLUMNS}
    import numpy as np

    with np.load(trace.columns, allow_pickle=False) as arrays:
        prompt, kld, nll, nll_reference, top1 = (arrays[name] for name in ("prompt", "kld", "nll", "nll_reference", "top1"))
    clusters = prompt.tolist()
    kld_mean, kld_se = mean_by_cluster(kld.tolist(), clusters)
    top1_mean, top1_se = mean_by_cluster(top1.astype(float).tolist(), clusters)
    squares, squares_se = mean_by_cluster(((np.exp(-nll) - np.exp(-nll_reference)) ** 2).tolist(), clusters)
    nll_mean, nll_se = mean_by_cluster(nll.tolist(), clusters)
    ln_ratio, ln_ratio_se = mean_by_cluster((nll - nll_reference).tolist(), clusters)
    rms = math.sqrt(squares)
    ppl, ratio = _exp(nll_mean), _exp(ln_ratio)
    enough = len(kld) >= P99_MIN_SAMPLES
    return {
        "scored_tokens": len(kld),
        "kld_mean": kld_mean,
        "kld_mean_se": _error(kld_se),
        "kld_median": float(np.median(kld)),
        "kld_p99": float(np.quantile(kld, 0.99)) if enough else Missing(f"a p99 takes {P99_MIN_SAMPLES} scored tokens"),
        "kld_max": float(kld.max()),
        "top1_agreement": top1_mean,
        "top1_agreement_se": _error(top1_se),
        "delta_p_rms": rms,
        "delta_p_rms_se": _error(squares_se, 0.5 / rms if rms else 0.0),
        "ppl": ppl,
        "ppl_se": _error(nll_se, ppl),
        "ppl_ratio": ratio,
        "ppl_ratio_se": _error(ln_ratio_se, ratio),
    }


def _exp(value: float) -> float | Missing:
    try:
        return math.exp(value)
    except OverflowError:
        return Missing(f"exp of {value:.0f} nats is more than a float holds: the variant is broken")


def _error(standard_error: float | None, factor: float | Missing = 1.0) -> Value:
    """The standard error of a function of the mean, by the delta method."""
    if isinstance(factor, Missing):
        return factor
    return Missing("one prompt has no spread between prompts") if standard_error is None else standard_error * factor
