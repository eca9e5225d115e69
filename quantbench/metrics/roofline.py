"""How close decoding comes to memory bandwidth: a decode step cannot be faster than reading its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from quantbench.core.record import Column, Missing, Value
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric
from quantbench.metrics.latency import decode_tps, seconds_per_token

_NO_MODEL = "no model decodes in this process"
_TWO_MEMORIES = "its weights are on a GPU and on the host, whose memories are not equally fast"
_UNKNOWN = (
    "the bytes that a step of this model reads are unknown: its method does not count them, or a step reads only some, "
    "as with experts or sliding windows"
)


@metric(
    Column(
        "memory_bandwidth_bps",
        "bytes/s",
        doc="what this device's memory moves in a copy, with the threads in use; bytes read and bytes written both count",
        formula="2 x array bytes (CPU 256 MiB, GPU 1 GiB at most) / s of the fastest; the best of all runs since the start",
        source="numpy copy on CPU (one part a thread); torch copy on CUDA, of the first GPU; STREAM's Copy counts alike",
    ),
    Column(
        "bytes_per_token",
        "bytes",
        "lower",
        "int",
        title="Read a token",
        doc="least that a decode step reads: weights (of an untied input embedding one row), and the KV cache so far",
        formula="(weight_bytes_running - untied input embedding + one row of it) / batch + KV bytes a position x mean position",
        source="quantbench, DESIGN section 6",
    ),
    Column(
        "mbu",
        "ratio",
        "higher",
        title="MBU", show=".1%", timed=True,
        doc="memory bandwidth in use while decoding; above 1 where a CPU's caches hold the model, or reads outrun copies",
        formula="bytes_per_token x decode_tps / memory_bandwidth_bps",
        source="Databricks, LLM Inference Performance Engineering: Best Practices (2023): model bandwidth utilization",
    ),
)
def roofline(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Bytes read per token, and the share of the measured memory bandwidth that decoding uses"""
    bandwidth: Value = _or(trace.memory_bandwidth_bps, trace.absent.get("memory_bandwidth_bps", _NO_MODEL))
    read: Value = _or(trace.bytes_per_token, _unread(trace))
    return {"memory_bandwidth_bps": bandwidth, "bytes_per_token": read, "mbu": _mbu(trace, bandwidth, read)}


def _unread(trace: Trace) -> str:
    """Why the bytes that a step reads are unknown."""
    if trace.weights is None:
        return trace.absent.get("weights", _NO_MODEL)
    return _UNKNOWN if trace.rounds else trace.absent.get("rounds", _NO_MODEL)


def _mbu(trace: Trace, bandwidth: Value, read: Value) -> Value:
    if "cpu" in trace.facts.get("device", "").split("+")[:-1]:  # sorted, so that the host comes before any GPU
        return Missing(_TWO_MEMORIES)
    for lacking in (read, bandwidth):
        if isinstance(lacking, Missing):
            return lacking
    if not trace.rounds or any(seconds_per_token(each.variant) is None for each in trace.rounds):
        return Missing(trace.absent.get("rounds", "no time passed between tokens"))
    assert trace.bytes_per_token is not None
    assert trace.memory_bandwidth_bps is not None
    return trace.bytes_per_token * median(decode_tps(each.variant) for each in trace.rounds) / trace.memory_bandwidth_bps


def _or(value: float | None, reason: str) -> Value:
    return Missing(reason) if value is None else value
