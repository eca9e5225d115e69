"""Bytes: of the weights themselves, as transformers counts them, on disk, and resident while generating."""

from __future__ import annotations

from collections.abc import Mapping

from quantbench.metrics import metric
from quantbench.record import Column, Missing, Value
from quantbench.trace import Reference, Trace

_WEIGHTS = (
    "parameters", "weight_bytes", "weight_bytes_running", "bits_per_weight", "footprint_bytes", "state_dict_bytes",
    "nonzero_fraction", "sparse_bytes",
)  # fmt: skip
_PEAKS = (
    "peak_rss_bytes", "peak_rss_growth_bytes", "load_peak_rss_bytes", "rss_anon_bytes", "rss_file_bytes",
    "peak_device_allocated_bytes", "peak_device_reserved_bytes",
)  # fmt: skip


@metric(
    Column("parameters", "parameters", kind="int", doc="of the reference"),
    Column(
        "weight_bytes", "bytes", "lower", "int", doc="everything that stores weights, as loaded, quantization state included"
    ),
    Column("weight_bytes_running", "bytes", "lower", "int", doc="the same after generating: some kernels repack on first use"),
    Column("bits_per_weight", "bits", "lower", doc="8 x weight_bytes / parameters"),
    Column("footprint_bytes", "bytes", None, "int", doc="get_memory_footprint() as transformers says it"),
    Column("state_dict_bytes", "bytes", "lower", "int", doc="what torch.save writes for the state dict; never loaded"),
    Column("nonzero_fraction", "ratio", doc="share of the prunable weights that is left: Linear layers of the blocks"),
    Column("sparse_bytes", "bytes", "lower", "int", doc="weight bytes without zeros: the other values and a bit a weight"),
    Column("artifact_bytes", "bytes", "lower", "int", doc="on disk: the files the variant is loaded from"),
    Column("peak_rss_bytes", "bytes", "lower", "int", doc="VmHWM while answering the longest prompt"),
    Column(
        "peak_rss_growth_bytes",
        "bytes",
        "lower",
        "int",
        doc="peak_rss_bytes less what was resident before the model was opened",
    ),
    Column("load_peak_rss_bytes", "bytes", "lower", "int", doc="VmHWM while the model was opened"),
    Column("rss_anon_bytes", "bytes", "lower", "int", doc="anonymous part of resident memory after the round"),
    Column("rss_file_bytes", "bytes", None, "int", doc="file-backed part of resident memory after the round"),
    Column("peak_device_allocated_bytes", "bytes", "lower", "int", doc="torch.cuda.max_memory_allocated"),
    Column("peak_device_reserved_bytes", "bytes", "lower", "int", doc="torch.cuda.max_memory_reserved"),
)
def memory(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Weight bytes, bits per weight, and resident memory with its split"""
    artifact = _or(trace.artifact_bytes, "the variant was not loaded from files")
    return {"artifact_bytes": artifact, **_weights(trace), **_peaks(trace)}


def _weights(trace: Trace) -> dict[str, Value]:
    weights = trace.weights
    unknown = trace.absent.get("weights", "the weights cannot be seen from here")
    if weights is None:
        return dict.fromkeys(_WEIGHTS, Missing(unknown))
    dense = "counted for pruned models only, where weights lie as plain values"
    share = None if weights.nonzero is None or not weights.elements else weights.nonzero / weights.elements
    return {
        "parameters": _or(trace.parameters, unknown),
        "weight_bytes": weights.weight_bytes,
        "weight_bytes_running": _or(trace.weight_bytes_running, unknown),
        "bits_per_weight": _or(8 * weights.weight_bytes / trace.parameters if trace.parameters else None, unknown),
        "footprint_bytes": _or(weights.footprint_bytes, "this runtime has no get_memory_footprint()"),
        "state_dict_bytes": _or(weights.state_dict_bytes, "taken of modules, torch and torch-dynamic only"),
        "nonzero_fraction": _or(share, dense),
        "sparse_bytes": _or(weights.sparse_bytes, dense),
    }


def _peaks(trace: Trace) -> dict[str, Value]:
    peak = trace.peak
    if peak is None:
        unknown = Missing(trace.absent.get("peak", "memory was not measured"))
        return dict.fromkeys(_PEAKS, unknown)
    on_host = "the model ran on the CPU"
    return {
        "peak_rss_bytes": peak.peak_rss_bytes,
        "peak_rss_growth_bytes": peak.peak_rss_bytes - peak.start_rss_bytes,
        "load_peak_rss_bytes": peak.load_peak_rss_bytes,
        "rss_anon_bytes": peak.rss_anon_bytes,
        "rss_file_bytes": peak.rss_file_bytes,
        "peak_device_allocated_bytes": _or(peak.device_allocated_bytes, on_host),
        "peak_device_reserved_bytes": _or(peak.device_reserved_bytes, on_host),
    }


def _or(value: float | None, reason: str) -> Value:
    return Missing(reason) if value is None else value
