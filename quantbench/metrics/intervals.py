"""95 % confidence intervals of the similarity figures' means, clustered by prompt or by the chunk of a text.

Perplexities and their ratio (paired by position) get theirs on the log scale, where they are means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantbench.core.record import Column, Missing, Value
from quantbench.core.statistics import FEW_CLUSTERS, RESAMPLES, mean_interval
from quantbench.core.trace import NO_REFERENCE, Answer, Reference, Trace
from quantbench.metrics import metric
from quantbench.metrics._columns import exponential, lacking, read_columns
from quantbench.metrics.text import chrf

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FORMULA = (
    f"below {FEW_CLUSTERS} clusters mean -+ t(0.975; clusters - 1) x clustered standard error; "
    f"from there on BCa bootstrap, {RESAMPLES} resamples of whole clusters"
)
_SOURCE = "Student's t on the linearized ratio of cluster totals; BCa: Efron 1987, scipy.stats.bootstrap"
_OF = {
    "kld_mean": ("nats", "; not below 0"),
    "top1_agreement": ("ratio", "; within 0 to 1"),
    "ear": ("ratio", "; within 0 to 1"),
    "ppl": ("ppl", "; of nll, then exp"),
    "ppl_ratio": ("ratio", "; of nll - nll_reference, then exp"),
    "chrf": ("chrF", "; within 0 to 100"),
}
_OF_POSITIONS = tuple(name for name in _OF if name != "chrf")


def _columns() -> tuple[Column, ...]:
    columns = [
        Column(
            "clusters", "prompts", kind="int", doc="prompts, or chunks of a text, that the intervals rest on",
            formula="how many have scored positions or, without those, answers", source="quantbench",
        ),
        Column(
            "few_clusters", "", kind="bool", doc=f"fewer than {FEW_CLUSTERS} prompts or chunks: intervals are t intervals",
            formula=f"clusters < {FEW_CLUSTERS}", source="quantbench: coverage by simulation, bench/harness/README.md",
        ),
    ]  # fmt: skip
    for name, (unit, how) in _OF.items():
        for end, which in (("low", "lower"), ("high", "upper")):
            doc = f"{which} end of the 95 % confidence interval of {name}"
            columns.append(Column(f"{name}_{end}", unit, doc=doc, formula=_FORMULA + how, source=_SOURCE))
    return tuple(columns)


_COLUMNS = _columns()
_ONE = Missing("one prompt has no spread between prompts")
_BROKEN = Missing("a position has no finite figure: the variant is broken")
_EQUAL = Missing("every prompt has the same figure, so there is no spread to make an interval from")

_Bounds = tuple[float, float] | Missing


@metric(*_COLUMNS)
def intervals(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """95 % confidence intervals of KLD, top-1 agreement, EAR, perplexity, its ratio and chrF"""
    columns = read_columns(trace)
    if isinstance(columns, Missing):
        clusters, values = 0, _filled(columns, *_OF_POSITIONS)
    else:
        clusters, values = len(set(columns["prompt"].tolist())), _of_positions(columns)
    if reference is None or not trace.answers:
        values |= _filled(Missing(trace.absent.get("answers", NO_REFERENCE)), "chrf")
    else:
        clusters = clusters or len(trace.answers)
        values |= _filled(_of_answers(trace.answers, reference.answers), "chrf")
    if not clusters:
        none = Missing(trace.absent.get("columns", NO_REFERENCE))
        return values | {"clusters": none, "few_clusters": none}
    return values | {"clusters": clusters, "few_clusters": clusters < FEW_CLUSTERS}


def _filled(bounds: _Bounds, *names: str) -> dict[str, Value]:
    low, high = (bounds, bounds) if isinstance(bounds, Missing) else bounds
    return {f"{name}_{end}": value for name in names for end, value in (("low", low), ("high", high))}


def _of_positions(columns: Mapping[str, NDArray[Any]]) -> dict[str, Value]:
    clusters: list[int] = columns["prompt"].tolist()
    nll = columns["nll"]
    values = _exponentials(_bounds(nll, clusters), "ppl")
    if "kld" not in columns:
        return values | _filled(Missing(NO_REFERENCE), "kld_mean", "top1_agreement", "ear", "ppl_ratio")
    kld, top1 = columns["kld"], columns["top1"].astype(float)
    lucky = kld.any() and top1.all()
    ear = _bounds(columns["ear"], clusters) if "ear" in columns else Missing(lacking(columns))
    return {
        **values,
        **_filled(_within(_bounds(kld, clusters), min(0.0, float(kld.mean())), math.inf), "kld_mean"),
        **_filled(_EQUAL if lucky else _within(_bounds(top1, clusters), 0.0, 1.0), "top1_agreement"),
        **_filled(_within(ear, 0.0, 1.0), "ear"),
        **_exponentials(_bounds(nll - columns["nll_reference"], clusters), "ppl_ratio"),
    }


def _of_answers(ours: Sequence[Answer], theirs: Sequence[Answer]) -> _Bounds:
    scores = [chrf(one.text, other.text) for one, other in zip(ours, theirs, strict=True)]
    interval = mean_interval(scores, range(len(scores)))
    if interval is None:
        return _ONE
    return _EQUAL if min(scores) == max(scores) else _within((interval.low, interval.high), 0.0, 100.0)


def _bounds(values: NDArray[np.float64], clusters: Sequence[int]) -> _Bounds:
    import numpy as np

    if not np.isfinite(values).all():
        return _BROKEN
    interval = mean_interval(values.tolist(), clusters)
    return (interval.low, interval.high) if interval else _ONE


def _within(bounds: _Bounds, least: float, most: float) -> _Bounds:
    """The interval cut to the values that the figure can have, which does not change how often it covers the truth."""
    return bounds if isinstance(bounds, Missing) else (max(bounds[0], least), min(bounds[1], most))


def _exponentials(bounds: _Bounds, name: str) -> dict[str, Value]:
    """The ends of an interval on the log scale as the ends of the figure's own."""
    ends = _filled(bounds, name)
    return {end: exponential(value) if isinstance(value, float) else value for end, value in ends.items()}
