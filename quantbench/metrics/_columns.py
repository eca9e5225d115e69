"""Shared by the metrics of scored positions: reading the columns, and standard errors by the delta method."""

from __future__ import annotations

import math
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantbench.core.record import Missing, Value
from quantbench.core.trace import NO_REFERENCE, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOOL = "llama.cpp tools/perplexity/perplexity.cpp, kl_divergence()"
"""The source of definitions that are llama-perplexity's."""

CLUSTERED = (
    "quantbench.core.statistics.mean_by_cluster: clustered errors (Miller 2024, arXiv:2411.00640), variance x C / (C - 1)"
)
"""The source of errors that are clustered by prompt, or by a text's chunk."""

_CLUSTER_ERROR = "sqrt(C / (C - 1) * sum_c (sum_{t in c} (z_t - mean(z)))^2) / n over C prompts or chunks"


def clustered(linearized: str) -> str:
    """The formula of the clustered error of the per-position values ``linearized``."""
    return f"{_CLUSTER_ERROR}, z_t = {linearized}"


def read_columns(trace: Trace) -> dict[str, NDArray[Any]] | Missing:
    """The arrays of the trace's scored positions by name (see ``Trace``); a Missing where nothing was scored."""
    if trace.columns is None:
        return Missing(trace.absent.get("columns", NO_REFERENCE))
    return load_columns(trace.columns)


def load_columns(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays in a file of scored positions, by name."""
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def lacking(columns: Container[str]) -> str:
    """Why scored positions lack a column that is compared with the reference's."""
    return "it was measured before quantbench kept this; run it again" if "kld" in columns else NO_REFERENCE


def exponential(value: float) -> float | Missing:
    """Exp of nats; a Missing where a float cannot hold it."""
    try:
        return math.exp(value)
    except OverflowError:
        return Missing(f"exp of {value:.0f} nats overflows a float: the variant is broken")


def standard_error(clustered_error: float | None, factor: float | Missing = 1.0) -> Value:
    """The standard error of a function of a mean, by the delta method: the mean's own times the derivative ``factor``."""
    if isinstance(factor, Missing):
        return factor
    return Missing("one prompt has no spread between prompts") if clustered_error is None else clustered_error * factor
