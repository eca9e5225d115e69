"""Teacher-forced distance to the reference: on its own sampled continuations or on a text, whole vocabulary.

Definitions are llama-perplexity's (``--kl-divergence``); standard errors are clustered by prompt, or by a text's chunk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantbench.core.record import Column, Gate, Missing, Value
from quantbench.core.statistics import P99_MIN_SAMPLES, mean_by_cluster
from quantbench.core.trace import NO_REFERENCE, Reference, Trace
from quantbench.metrics import metric
from quantbench.metrics._columns import (
    CLUSTERED,
    TOOL,
    clustered,
    exponential,
    read_columns,
    standard_error,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ALONE = (
    Column(
        "scored_tokens", "tokens", kind="int", doc="positions scored",
        formula="n = positions with a known next token t; of a text's chunk of m tokens those from m / 2 to m - 2", source=TOOL,
    ),
    Column(
        "ppl", "ppl", "lower", title="PPL", shown="report", place=32, gate=Gate(least=0.005),
        doc="exp of the mean negative log-likelihood of the continuations, or of the text",
        formula="exp(mean(nll)), nll_t = -ln q(t)", source=TOOL,
    ),
    Column("ppl_se", "ppl", doc="standard error of ppl", formula=clustered("ppl * nll_t"), source=CLUSTERED),
)  # fmt: skip
"""Columns that need no reference."""

_AGAINST_REFERENCE = (
    Column(
        "kld_mean", "nats", "lower", title="KLD, nats", show="short", spread="error", shown="overview", place=30,
        gate=Gate(least=0.05, floor=1e-5, slicing="kld_slicing"),
        doc="mean KL(reference || variant)",
        formula="mean(kld), kld_t = sum_i p_t(i) * (ln p_t(i) - ln q_t(i)), p of the reference, over the whole vocabulary",
        source=f"{TOOL}; it leaves out i with ln p_t(i) <= -16",
    ),
    Column("kld_mean_se", "nats", doc="standard error of kld_mean", formula=clustered("kld_t"), source=CLUSTERED),
    Column(
        "kld_median", "nats", "lower", doc="median KL divergence of a position",
        formula="middle of the sorted kld_t, of an even number the mean of the two middle ones", source=TOOL,
    ),
    Column(
        "kld_p99", "nats", "lower", doc=f"99th percentile of the KL divergence, from {P99_MIN_SAMPLES} positions",
        formula="linear between the sorted kld_t at 0.99 * (n - 1)", source=TOOL,
    ),
    Column(
        "kld_max", "nats", "lower", doc="largest KL divergence of a position", formula="max(kld_t)", source=TOOL,
    ),
    Column(
        "top1_agreement", "ratio", "higher", title="Top-1", show=".1%", shown="overview", place=31,
        gate=Gate(floor=0.005, slicing="top1_slicing"),
        doc="share of positions where both put the same token first",
        formula="mean(argmax_i q_t(i) == argmax_i p_t(i)), the first of equals", source=f"{TOOL}: Same top p",
    ),
    Column(
        "top1_agreement_se", "ratio", doc="standard error of top1_agreement", formula=clustered("1 if equal, else 0"),
        source=CLUSTERED,
    ),
    Column(
        "delta_p_rms", "ratio", "lower", doc="root mean square change of the target token's probability",
        formula="sqrt(mean(delta_p^2)), delta_p_t = q_t - p_t = exp(-nll_t) - exp(-nll_reference_t)", source=f"{TOOL}: RMS dp",
    ),
    Column(
        "delta_p_rms_se", "ratio", doc="standard error of delta_p_rms",
        formula=clustered("0.5 / delta_p_rms * delta_p_t^2"), source=CLUSTERED,
    ),
    Column(
        "ppl_ratio", "ratio", "lower", title="PPL, x reference", show="times", doc="ppl over the reference's ppl, paired",
        formula="exp(mean(nll - nll_reference))", source=f"{TOOL}: PPL(Q)/PPL(base)",
    ),
    Column(
        "ppl_ratio_se", "ratio", doc="standard error of ppl_ratio",
        formula=clustered("ppl_ratio * (nll_t - nll_reference_t)"), source=CLUSTERED,
    ),
)  # fmt: skip


@metric(*_ALONE, *_AGAINST_REFERENCE)
def divergence(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """KL divergence, top-1 agreement, delta p and perplexity against the reference"""
    columns = read_columns(trace)
    if isinstance(columns, Missing):
        return {column.name: columns for column in (*_ALONE, *_AGAINST_REFERENCE)}
    clusters = columns["prompt"].tolist()
    nll_mean, nll_se = mean_by_cluster(columns["nll"].tolist(), clusters)
    ppl = exponential(nll_mean)
    values: dict[str, Value] = {"scored_tokens": len(clusters), "ppl": ppl, "ppl_se": standard_error(nll_se, ppl)}
    if "kld" not in columns:
        return values | {column.name: Missing(NO_REFERENCE) for column in _AGAINST_REFERENCE}
    return values | _distance(columns, clusters)


def _distance(columns: Mapping[str, NDArray[Any]], clusters: list[int]) -> dict[str, Value]:
    import numpy as np

    kld, nll, nll_reference, top1 = (columns[name] for name in ("kld", "nll", "nll_reference", "top1"))
    kld_mean, kld_se = mean_by_cluster(kld.tolist(), clusters)
    top1_mean, top1_se = mean_by_cluster(top1.astype(float).tolist(), clusters)
    squares, squares_se = mean_by_cluster(((np.exp(-nll) - np.exp(-nll_reference)) ** 2).tolist(), clusters)
    ln_ratio, ln_ratio_se = mean_by_cluster((nll - nll_reference).tolist(), clusters)
    rms = math.sqrt(squares)
    ratio = exponential(ln_ratio)
    enough = len(kld) >= P99_MIN_SAMPLES
    return {
        "kld_mean": kld_mean,
        "kld_mean_se": standard_error(kld_se),
        "kld_median": float(np.median(kld)),
        "kld_p99": float(np.quantile(kld, 0.99)) if enough else Missing(f"a p99 needs {P99_MIN_SAMPLES} scored tokens"),
        "kld_max": float(kld.max()),
        "top1_agreement": top1_mean,
        "top1_agreement_se": standard_error(top1_se),
        "delta_p_rms": rms,
        "delta_p_rms_se": standard_error(squares_se, 0.5 / rms if rms else 0.0),
        "ppl_ratio": ratio,
        "ppl_ratio_se": standard_error(ln_ratio_se, ratio),
    }
