"""Bytes: of the weights themselves, as transformers counts them, on disk, and resident while generating."""

from __future__ import annotations

from collections.abc import Mapping

from quantbench.metrics import metric
from quantbench.record import Column, Missing, Value
from quantbench.trace import Reference, Trace


@metric(
    Column("parameters", "parameters", kind="int", doc="of the reference"),
    Column(
        "weight_bytes", "bytes", "lower", "int", doc="everything that stores weights, as loaded, quantization state included"
    ),
    Column("weight_bytes_running", "bytes", "lower", "int", doc="the same after generating: some kernels repack on first use"),
    Column("bits_per_weight", "bits", "lower", doc="8 x weight_bytes / parameters"),
    Column("footprint_bytes", "bytes", None, "int", doc="get_memory_footprint() as transformers says it"),
    Column("artifact_bytes", "bytes", "lower", "int", doc="on disk: the files the variant is loaded from"),
    Column("peak_rss_bytes", "bytes", "lower", "int", doc="VmHWM while answering every prompt once"),
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
    peak = trace.peak
    on_host = Missing("the model ran on the CPU")
    return {
        "parameters": trace.parameters,
        "weight_bytes": trace.weights.weight_bytes,
        "weight_bytes_running": trace.weight_bytes_running,
        "bits_per_weight": 8 * trace.weights.weight_bytes / trace.parameters,
        "footprint_bytes": _or(trace.weights.footprint_bytes, Missing("this runtime has no get_memory_footprint()")),
        "artifact_bytes": _or(trace.artifact_bytes, Missing("the variant was not loaded from files")),
        "peak_rss_bytes": peak.peak_rss_bytes,
        "peak_rss_growth_bytes": peak.peak_rss_bytes - peak.start_rss_bytes,
        "load_peak_rss_bytes": peak.load_peak_rss_bytes,
        "rss_anon_bytes": peak.rss_anon_bytes,
        "rss_file_bytes": peak.rss_file_bytes,
        "peak_device_allocated_bytes": _or(peak.device_allocated_bytes, on_host),
        "peak_device_reserved_bytes": _or(peak.device_reserved_bytes, on_host),
    }


def _or(value: int | None, missing: Missing) -> Value:
    return missing if value is None else value
