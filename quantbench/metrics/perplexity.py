"""The reference's perplexity beside the variant's: their difference and correlation, with both kinds of standard error.

``*_se`` are clustered by prompt, or by a text's chunk. ``*_se_iid`` take tokens as independent, as llama-perplexity does;
tokens of one text are not, so compare these with its output and do not decide by them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantbench.core import llama_perplexity
from quantbench.core.llama_perplexity import LEAST_POSITIONS
from quantbench.core.record import Column, Missing, Value
from quantbench.core.statistics import mean_by_cluster
from quantbench.core.trace import NO_REFERENCE, Reference, Trace
from quantbench.metrics import metric
from quantbench.metrics._columns import CLUSTERED, TOOL, clustered, exponential, read_columns, standard_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

_U = "u(z) = sqrt((mean(z^2) - mean(z)^2) / (n - 1)), cov likewise"


def _iid(name: str, unit: str, formula: str) -> Column:
    doc = f"standard error of {name} if tokens were independent, as llama-perplexity prints it"
    return Column(f"{name}_se_iid", unit, doc=doc, formula=formula, source=TOOL)


_ALONE = (_iid("ppl", "ppl", f"ppl * u(nll), {_U}"),)
"""Columns that need no reference."""

_AGAINST_REFERENCE = (
    Column(
        "ppl_reference", "ppl", doc="exp of the reference's mean negative log-likelihood at the same positions",
        formula="exp(mean(nll_reference)), nll_reference_t = -ln p(t)", source=f"{TOOL}: PPL(base)",
    ),
    Column(
        "ppl_reference_se", "ppl", doc="standard error of ppl_reference",
        formula=clustered("ppl_reference * nll_reference_t"), source=CLUSTERED,
    ),
    _iid("ppl_reference", "ppl", f"ppl_reference * u(nll_reference), {_U}"),
    Column(
        "nll_correlation", "ratio", "higher", doc="correlation of both models' negative log-likelihoods over positions",
        formula=f"cov(nll, nll_reference) / (u(nll) * u(nll_reference)), {_U}",
        source=f"{TOOL}: Cor(ln(PPL(Q)), ln(PPL(base)))",
    ),
    Column(
        "ln_ppl_ratio", "nats", "lower", doc="natural logarithm of ppl_ratio",
        formula="mean(nll - nll_reference)", source=f"{TOOL}: ln(PPL(Q)/PPL(base))",
    ),
    Column(
        "ln_ppl_ratio_se", "nats", doc="standard error of ln_ppl_ratio", formula=clustered("nll_t - nll_reference_t"),
        source=CLUSTERED,
    ),
    _iid("ln_ppl_ratio", "nats", f"sqrt(u(nll)^2 + u(nll_reference)^2 - 2 * cov(nll, nll_reference)), {_U}"),
    _iid("ppl_ratio", "ratio", "ppl_ratio * ln_ppl_ratio_se_iid"),
    Column(
        "ppl_difference", "ppl", "lower", doc="ppl less the reference's ppl",
        formula="ppl - ppl_reference", source=f"{TOOL}: PPL(Q)-PPL(base)",
    ),
    Column(
        "ppl_difference_se", "ppl", doc="standard error of ppl_difference, by the delta method on the paired covariance",
        formula=clustered("ppl * nll_t - ppl_reference * nll_reference_t"), source=CLUSTERED,
    ),
    _iid(
        "ppl_difference", "ppl",
        f"sqrt(a^2 + b^2 - 2 * ppl * ppl_reference * cov(nll, nll_reference)), a = ppl_se_iid, b = ppl_reference_se_iid, {_U}",
    ),
)  # fmt: skip


@metric(*_ALONE, *_AGAINST_REFERENCE)
def perplexity(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """The reference's perplexity, its difference from the variant's, and errors as llama-perplexity prints them"""
    columns = read_columns(trace)
    if isinstance(columns, Missing):
        return {column.name: columns for column in (*_ALONE, *_AGAINST_REFERENCE)}
    enough = len(columns["nll"]) >= LEAST_POSITIONS
    if "kld" not in columns:
        printed = llama_perplexity.perplexity(columns["nll"]) if enough else {}
        return {**_printed(_ALONE, printed), **{column.name: Missing(NO_REFERENCE) for column in _AGAINST_REFERENCE}}
    printed = llama_perplexity.statistics(columns) if enough else {}
    iid = [column for column in (*_ALONE, *_AGAINST_REFERENCE) if column.name.endswith("_se_iid")]
    return {**_printed(iid, printed), **_paired(columns), "nll_correlation": _correlation(printed)}


def _printed(columns: tuple[Column, ...] | list[Column], printed: Mapping[str, float]) -> dict[str, Value]:
    too_few = Missing(f"llama-perplexity's errors need {LEAST_POSITIONS} scored tokens")
    return {column.name: printed.get(column.name, too_few) for column in columns}


def _correlation(printed: Mapping[str, float]) -> Value:
    value = printed.get("nll_correlation", None)
    if value is None:
        return Missing(f"a correlation needs {LEAST_POSITIONS} scored tokens, as in llama-perplexity")
    return Missing("a likelihood that never varies has no correlation") if math.isnan(value) else value


def _paired(columns: Mapping[str, NDArray[Any]]) -> dict[str, Value]:
    """Figures with clustered errors."""
    nll, nll_reference, clusters = columns["nll"], columns["nll_reference"], columns["prompt"].tolist()
    mean_reference, reference_se = mean_by_cluster(nll_reference.tolist(), clusters)
    ln_ratio, ln_ratio_se = mean_by_cluster((nll - nll_reference).tolist(), clusters)
    mean, _ = mean_by_cluster(nll.tolist(), clusters)  # summed like the reference's: against itself exactly 0
    ppl, ppl_reference = exponential(mean), exponential(mean_reference)
    values: dict[str, Value] = {
        "ppl_reference": ppl_reference,
        "ppl_reference_se": standard_error(reference_se, ppl_reference),
        "ln_ppl_ratio": ln_ratio,
        "ln_ppl_ratio_se": standard_error(ln_ratio_se),
    }
    for broken in (ppl, ppl_reference):
        if isinstance(broken, Missing):
            return values | {"ppl_difference": broken, "ppl_difference_se": broken}
    assert isinstance(ppl, float)
    assert isinstance(ppl_reference, float)
    _, difference_se = mean_by_cluster((ppl * nll - ppl_reference * nll_reference).tolist(), clusters)
    return values | {"ppl_difference": ppl - ppl_reference, "ppl_difference_se": standard_error(difference_se)}
