"""A module without tokens: the time of a call, its ratio to the anchor's, and its outputs against the reference's."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from quantbench.core.record import Column, Gate, Missing, Value
from quantbench.core.statistics import mad, median_interval, percentile
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric
from quantbench.metrics._spread import (
    PERCENTILE_SOURCE,
    SPREAD_SOURCE,
    interval_columns,
    percentile_formula,
    spread_formula,
)

_CALLS = ("call_s", "call_mad_s", "call_p90_s")
_RATIOS = ("call_ratio", "call_ratio_low", "call_ratio_high")
_OUTPUTS = ("output_cosine", "output_max_abs_error")


@metric(
    Column(
        "call_s", "s", "lower", title="Call", shown="report", place=23, timed=True, gate=Gate(name="call", ratio="call_ratio"),
        doc="one call of a module without tokens on a seeded input; median over calls",
        formula="median(t_returned - t_called)", source="torch.utils.benchmark takes the median as well",
    ),
    Column(
        "call_mad_s", "s", timed=True, doc="median absolute deviation of call_s x 1.4826", formula=spread_formula("call_s"),
        source=SPREAD_SOURCE,
    ),
    Column(
        "call_p90_s", "s", "lower", timed=True, doc="90th percentile of call_s", formula=percentile_formula("call_s", 0.9),
        source=PERCENTILE_SOURCE,
    ),
    Column(
        "call_ratio", "ratio", "higher", title="Call, x anchor", show="times", timed=True,
        doc="the anchor's median call over the variant's in each round; median over rounds",
        formula="median over rounds of median(anchor's calls) / median(variant's calls)", source="quantbench",
    ),
    *interval_columns("call_ratio", "ratio", "paired rounds"),
    Column(
        "output_cosine", "ratio", "higher", title="Cosine", show=".6f",
        doc="cosine of all outputs on seeded inputs with the reference's",
        formula="x . y / (|x| * |y|), x and y all outputs in a row, float64", source="cosine similarity, as usual",
    ),
    Column(
        "output_max_abs_error", "output", "lower", title="Largest error", show="short",
        doc="largest absolute difference of an output from the reference's",
        formula="max(|x - y|)", source="maximum norm, as usual",
    ),
)  # fmt: skip
def module(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Call time and output similarity of a module without tokens"""
    return {**_times(trace), **_ratios(trace), **_distance(trace)}


def _times(trace: Trace) -> dict[str, Value]:
    calls = [seconds for each in trace.calls for seconds in each.variant]
    if not calls:
        return dict.fromkeys(_CALLS, Missing(trace.absent.get("calls", "a model that reads tokens is timed by its answers")))
    return {"call_s": median(calls), "call_mad_s": mad(calls), "call_p90_s": percentile(calls, 0.9)}


def _ratios(trace: Trace) -> dict[str, Value]:
    paired = [each for each in trace.calls if each.anchor]
    if not paired:
        uncalled = trace.absent.get("calls", "a model that reads tokens has decode_ratio")
        return dict.fromkeys(_RATIOS, Missing("no anchor could be had for this module here" if trace.calls else uncalled))
    ratios = [median(each.anchor) / median(each.variant) for each in paired]
    too_few = Missing(f"{len(ratios)} rounds are too few for a 95 % interval of the median, which needs 6")
    low, high = median_interval(ratios) or (too_few, too_few)
    return {"call_ratio": median(ratios), "call_ratio_low": low, "call_ratio_high": high}


def _distance(trace: Trace) -> dict[str, Value]:
    found = trace.distance
    if found is None:
        why = Missing(trace.absent.get("distance", "a model that reads tokens is compared by its predictions"))
        return dict.fromkeys(_OUTPUTS, why)
    return {"output_cosine": found.cosine, "output_max_abs_error": found.max_abs_error}
