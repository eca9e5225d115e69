"""Metrics: one file each. A metric turns a Trace, and the reference's data, into columns.

A new metric is one file here (or an entry point in the group ``quantbench.metrics``)::

    @metric(Column("answer_tokens_mean", "tokens"))
    def answer_length(trace, reference):
        lengths = [len(answer.tokens) for answer in trace.answers if answer.tokens is not None]
        return {"answer_tokens_mean": fmean(lengths) if lengths else Missing("no answer has token ids")}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quantbench.core.record import Column, Missing, Value
from quantbench.core.registry import Registry
from quantbench.core.signals import Signal
from quantbench.core.trace import Reference, Trace

Compute = Callable[[Trace, Reference | None], Mapping[str, Value]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A function and the columns it fills: every one of them, with a Missing where there is no figure."""

    name: str
    about: str
    columns: tuple[Column, ...]
    compute: Compute
    signal: Signal | None = None


def metric(*columns: Column, signal: Signal | None = None) -> Callable[[Compute], Metric]:
    """Register a function of (trace, reference) as the metric that fills ``columns``.

    ``signal`` runs around each pass and collects what the trace itself does not hold.
    """

    def register(compute: Compute) -> Metric:
        about = (compute.__doc__ or "").strip().splitlines()
        return Metric(compute.__name__, about[0] if about else "", columns, compute, signal)

    return register


_KINDS: Mapping[str, tuple[type, ...]] = {"float": (float, int), "int": (int,), "string": (str,), "bool": (bool,)}

METRICS: Registry[Metric] = Registry("quantbench.metrics", Metric, "metric")


def all_columns() -> tuple[Column, ...]:
    """The columns of every registered metric, by metric name."""
    return tuple(column for each in METRICS for column in each.columns)


def evaluate(trace: Trace, reference: Reference | None) -> dict[str, Value]:
    """All columns of all metrics for one trace."""
    values: dict[str, Value] = {}
    for each in METRICS:
        computed = each.compute(trace, reference)
        values |= {column.name: _checked(column, computed[column.name]) for column in each.columns}
    return values


def _checked(column: Column, value: Value) -> Value:
    """The value if it is of its column's kind; a figure that is not finite becomes a Missing. Raises TypeError."""
    if isinstance(value, Missing):
        return value
    if not isinstance(value, _KINDS[column.kind]) or (isinstance(value, bool) and column.kind != "bool"):
        raise TypeError(f"column {column.name!r} is of kind {column.kind} and got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        return Missing(f"the figure is {value}, which is not finite: the numbers behind it are broken")
    return value
