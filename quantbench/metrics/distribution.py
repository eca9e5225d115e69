"""How the KL divergence and the change of the target's probability are spread over positions, as llama-perplexity prints it.

``*_se_iid`` take tokens as independent, as llama-perplexity does; compare them with its output and decide by ``*_se``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from quantbench.core.llama_perplexity import LEAST_POSITIONS, PERCENTILES, statistics
from quantbench.core.record import Column, Missing, Value
from quantbench.core.statistics import P99_MIN_SAMPLES, mean_by_cluster
from quantbench.core.trace import NO_REFERENCE, Reference, Trace
from quantbench.metrics import metric
from quantbench.metrics._columns import CLUSTERED, TOOL, clustered, read_columns, standard_error

_ROUNDED = "in float32"
_ERROR = "u(z) = sqrt((mean(z^2) - mean(z)^2) / (n - 1))"
_KLD = ("kld_p999", "kld_p95", "kld_p90", "kld_p10", "kld_p05", "kld_p01", "kld_p001", "kld_min")
_UPPER = ("kld_p999", "kld_p95", "kld_p90")
_DELTA_P = ("delta_p_max", *(f"delta_p_{name}" for name in PERCENTILES), "delta_p_min")


def _place(name: str) -> tuple[str, str]:
    """A statistic in words and as a formula."""
    kind, _, place = name.rpartition("_")
    values = "kld_t" if kind == "kld" else "delta_p_t"
    if place in ("max", "min"):
        return ("largest" if place == "max" else "smallest"), f"{place}({values})"
    fraction = PERCENTILES[place]
    words = "median" if place == "median" else f"percentile {100 * fraction:g}"
    return words, f"linear between the sorted {values} at {fraction:g} * (n - 1), {_ROUNDED}"


def _spread() -> Iterator[Column]:
    for name in (*_KLD, *_DELTA_P):
        words, formula = _place(name)
        if name.startswith("kld"):
            doc = f"{words} of the KL divergence per position; rounding may put a small one below 0"
            yield Column(name, "nats", "lower" if name in _UPPER else None, doc=doc, formula=formula, source=TOOL)
        else:
            doc = f"{words} of the change of the target token's probability, variant less reference"
            yield Column(name, "ratio", doc=doc, formula=formula, source=TOOL)


def _independent() -> Iterator[Column]:
    for name, unit, formula in (
        ("kld_mean", "nats", f"u(kld), {_ERROR}"),
        ("delta_p_mean", "ratio", f"u(delta_p), {_ERROR}"),
        ("delta_p_rms", "ratio", f"0.5 / delta_p_rms * u(delta_p^2), {_ERROR}"),
        ("top1_agreement", "ratio", "sqrt(s * (1 - s) / (n - 1)), s = top1_agreement"),
    ):
        doc = f"standard error of {name} if tokens were independent, as llama-perplexity prints it"
        yield Column(f"{name}_se_iid", unit, doc=doc, formula=formula, source=TOOL)


_PRINTED = (*_spread(), *_independent())
_MEAN = (
    Column(
        "delta_p_mean", "ratio", doc="mean change of the target token's probability, variant less reference",
        formula="mean(delta_p), delta_p_t = exp(-nll_t) - exp(-nll_reference_t)", source=TOOL,
    ),
    Column(
        "delta_p_mean_se", "ratio", doc="standard error of delta_p_mean", formula=clustered("delta_p_t"), source=CLUSTERED,
    ),
)  # fmt: skip
_COLUMNS = (*_MEAN, *_PRINTED)

_LEAST: Mapping[str, tuple[str, int]] = {
    **dict.fromkeys(("p99", "p01"), ("a p99 or p01", P99_MIN_SAMPLES)),
    **dict.fromkeys(("p999", "p001"), ("a p99.9 or p0.1", 10 * P99_MIN_SAMPLES)),
}
"""Percentiles that need more positions: ten must lie beyond them, as beyond the p99 of 1000."""


@metric(*_COLUMNS)
def distribution(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Percentiles of KL divergence and delta p, and errors as llama-perplexity prints them"""
    import numpy as np

    columns = read_columns(trace)
    if not isinstance(columns, Missing) and "kld" not in columns:
        columns = Missing(NO_REFERENCE)
    if isinstance(columns, Missing):
        return {column.name: columns for column in _COLUMNS}
    change = np.exp(-columns["nll"]) - np.exp(-columns["nll_reference"])
    mean, error = mean_by_cluster(change.tolist(), columns["prompt"].tolist())
    count = len(change)
    printed = statistics(columns) if count >= LEAST_POSITIONS else {}
    values: dict[str, Value] = {"delta_p_mean": mean, "delta_p_mean_se": standard_error(error)}
    for column in _PRINTED:
        what, least = _LEAST.get(column.name.rpartition("_")[2], ("this, as in llama-perplexity,", LEAST_POSITIONS))
        values[column.name] = printed[column.name] if count >= least else Missing(f"{what} needs {least} scored tokens")
    return values
