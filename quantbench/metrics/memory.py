"""Bytes: of the weights themselves, as transformers counts them, on disk, and resident while generating."""

from __future__ import annotations

import json
from collections.abc import Mapping

from quantbench.core.record import Column, Gate, Missing, Value
from quantbench.core.trace import Reference, Trace, WeightMemory
from quantbench.metrics import metric

EQUAL = "equal"
"""The note where the footprint equals the weight bytes."""

_WALKED = ("parameters", "buffers", "tensor_subclasses")
"""Kinds of weights that ``get_memory_footprint()`` walks over."""

_ON_CPU = "the model ran on the CPU"
_UNREAD = "the kernel did not report it"
_PROC = "kernel: proc_pid_status(5), proc_pid_clear_refs(5)"
_TORCH_CUDA = "torch.cuda memory statistics"
_NVML_PROCESS = "NVML nvmlDeviceGetComputeRunningProcesses"
_NVML_MEMORY = "NVML nvmlDeviceGetMemoryInfo"
_FOOTPRINT = "transformers PreTrainedModel.get_memory_footprint"
_WEIGHTS = (
    Column(
        "parameters", "parameters", kind="int", doc="parameter count of the reference",
        formula="elements of all weight tensors in the headers of the files; packed ones as if unpacked",
        source="safetensors and GGUF headers",
    ),
    Column(
        "weight_bytes", "bytes", "lower", "int",
        title="Weights", shown="overview", place=10, gate=Gate(least=0.001),
        doc="everything that stores weights, as loaded, quantization state included",
        formula="sum of the bytes of the distinct storages of parameters, buffers and quantization state; GGUF: of all tensors",
        source="quantbench; GGUF: llama.cpp llama_model_size",
    ),
    Column(
        "weight_bytes_running", "bytes", "lower", "int", title="Running", gate=Gate(least=0.001),
        doc="the same after generating: some kernels repack on first use",
        formula="weight_bytes, counted again after the first answer", source="quantbench",
    ),
    Column(
        "weight_kinds", "bytes", kind="string", doc="JSON: the parts of weight_bytes by kind",
        formula="{kind: bytes}; their sum is weight_bytes", source="quantbench",
    ),
    Column(
        "bits_per_weight", "bits", "lower", title="Bits/weight", show=".2f", shown="overview", place=11,
        doc="bits that a parameter of the reference takes here",
        formula="8 * weight_bytes / parameters", source="llama.cpp prints it as BPW",
    ),
    Column(
        "footprint_bytes", "bytes", None, "int", title="Footprint", doc="get_memory_footprint() as transformers gives it",
        formula="sum of nelement() * element_size() over parameters and buffers", source=_FOOTPRINT,
    ),
    Column(
        "footprint_note", "", kind="string", doc=f"why footprint_bytes is not weight_bytes; {EQUAL!r} where it is",
        formula="from weight_kinds: kinds that are neither parameter nor buffer; tensors that say more bytes than they store",
        source="quantbench",
    ),
    Column(
        "state_dict_bytes", "bytes", "lower", "int", doc="what torch.save writes for the state dict; never loaded",
        formula="size of the file", source="torch.save",
    ),
    Column(
        "nonzero_fraction", "ratio", doc="share of the prunable weights that is left: Linear layers of the blocks",
        formula="weights that are not 0 / weights before pruning; removed neurons count as 0", source="torch.count_nonzero",
    ),
    Column(
        "sparse_bytes", "bytes", "lower", "int", doc="weight bytes without zeros: the other values and a bit a weight",
        formula="weight_bytes - sum over prunable tensors of max(0, zeros * bytes of one - weights / 8)", source="quantbench",
    ),
)  # fmt: skip
_ARTIFACT = Column(
    "artifact_bytes", "bytes", "lower", "int", title="On disk", gate=Gate(least=0.01),
    doc="on disk: the files the variant is loaded from",
    formula="sum of the sizes of the weight files", source="stat(2)",
)  # fmt: skip
_PEAKS = (
    Column(
        "peak_rss_bytes", "bytes", "lower", "int", title="Peak RSS", shown="report", place=12,
        doc="most resident memory of the process, answering the longest prompt",
        formula="VmHWM after the answer, reset before it", source=_PROC,
    ),
    Column(
        "peak_rss_growth_bytes", "bytes", "lower", "int", title="Growth, answering",
        doc="peak_rss_bytes less what was resident before opening",
        formula="VmHWM - VmRSS before opening, freed memory given back to the kernel first", source=_PROC,
    ),
    Column(
        "load_peak_rss_bytes", "bytes", "lower", "int", doc="most resident memory of the process while the model was opened",
        formula="VmHWM after opening, reset before it", source=_PROC,
    ),
    Column(
        "rss_anon_bytes", "bytes", "lower", "int", title="Anonymous",
        doc="anonymous part of resident memory at the answer's highest sample",
        formula="RssAnon of the sample with the largest VmRSS, one each 2 ms and one at the end", source=_PROC,
    ),
    Column(
        "rss_file_bytes", "bytes", None, "int", title="File", doc="file-backed part of resident memory at the same sample",
        formula="RssFile of that sample; with RssAnon and shared memory its VmRSS", source=_PROC,
    ),
)  # fmt: skip
_DEVICE_PEAKS = (
    Column(
        "peak_device_allocated_bytes", "bytes", "lower", "int", doc="most bytes of tensors on the device while answering",
        formula="sum over the GPUs of torch.cuda.max_memory_allocated(), reset before", source=_TORCH_CUDA,
    ),
    Column(
        "peak_device_reserved_bytes", "bytes", "lower", "int",
        doc="most bytes that torch's allocator took from the device while answering",
        formula="sum over the GPUs of torch.cuda.max_memory_reserved(), reset after empty_cache()", source=_TORCH_CUDA,
    ),
    Column(
        "load_peak_device_allocated_bytes", "bytes", "lower", "int", doc="most bytes of tensors on the device while opening",
        formula="sum over the GPUs of torch.cuda.max_memory_allocated() after opening", source=_TORCH_CUDA,
    ),
    Column(
        "peak_device_process_bytes", "bytes", "lower", "int",
        doc="most device memory of the process as the driver lists it: CUDA's own context, some hundred MB, counts too",
        formula="highest sample of this pid's usedGpuMemory while answering, summed over the GPUs", source=_NVML_PROCESS,
    ),
    Column(
        "peak_device_used_bytes", "bytes", "lower", "int",
        doc="most that the GPUs gave away beyond what was in use before opening: by any runtime, and others' use too",
        formula="highest sample of used while answering - used before opening, summed over the GPUs", source=_NVML_MEMORY,
    ),
    Column(
        "device_context_bytes", "bytes", None, "int",
        doc="what CUDA's context took on the GPUs, before anything was imported; peak_device_used_bytes is without it",
        formula="used after making the context - used before, summed over the GPUs", source=_NVML_MEMORY,
    ),
)  # fmt: skip


@metric(*_WEIGHTS, _ARTIFACT, *_PEAKS, *_DEVICE_PEAKS)
def memory(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Weight bytes with their kinds, bits per weight, resident memory with its split, and memory of the device"""
    artifact = _or(trace.artifact_bytes, trace.absent.get("artifact_bytes", "the variant was not loaded from files"))
    return {"artifact_bytes": artifact, **_weights(trace), **_peaks(trace)}


def footprint_note(weights: WeightMemory, footprint_bytes: int) -> str:
    """Why transformers' figure differs from ``weight_bytes``; ``EQUAL`` where it does not.

    Each of several reasons comes with its bytes. Kinds that transformers does not count keep their own names.
    """
    unseen = {kind: count for kind, count in weights.by_kind.items() if count and kind not in _WALKED}
    excess = footprint_bytes - sum(weights.by_kind.get(kind, 0) for kind in _WALKED)
    reasons = {}
    if unseen:
        names = ", ".join(kind.replace("_", " ") for kind in unseen)
        reasons[f"neither parameters nor buffers: {names}"] = -sum(unseen.values())
    if excess > 0 and weights.by_kind.get("tensor_subclasses"):
        reasons["tensor subclasses report the size of the dense tensors that they stand for"] = excess
    elif excess > 0:
        reasons["tensors that share storage are counted more than once"] = excess
    elif excess < 0:
        reasons["storage is larger than the tensors in it"] = excess
    if len(reasons) > 1:
        return "; ".join(f"{count:+d} bytes: {reason}" for reason, count in reasons.items())
    return next(iter(reasons), EQUAL)


def _weights(trace: Trace) -> dict[str, Value]:
    weights = trace.weights
    unknown = trace.absent.get("weights", "the weights cannot be seen from here")
    if weights is None:
        return {column.name: Missing(unknown) for column in _WEIGHTS}
    dense = "counted only for pruned models, whose weights are stored as plain values"
    share = None if weights.nonzero is None or not weights.elements else weights.nonzero / weights.elements
    footprint: Value = _or(weights.footprint_bytes, "this runtime has no get_memory_footprint()")
    return {
        "parameters": _or(trace.parameters, unknown),
        "weight_bytes": weights.weight_bytes,
        "weight_bytes_running": _or(trace.weight_bytes_running, unknown),
        "weight_kinds": json.dumps({kind: count for kind, count in weights.by_kind.items() if count}),
        "bits_per_weight": _or(8 * weights.weight_bytes / trace.parameters if trace.parameters else None, unknown),
        "footprint_bytes": footprint,
        "footprint_note": footprint if isinstance(footprint, Missing) else footprint_note(weights, int(footprint)),
        "state_dict_bytes": _or(weights.state_dict_bytes, "measured only for modules, torch and torch-dynamic"),
        "nonzero_fraction": _or(share, dense),
        "sparse_bytes": _or(weights.sparse_bytes, dense),
    }


def _peaks(trace: Trace) -> dict[str, Value]:
    peak = trace.peak
    if peak is None:
        unknown = Missing(trace.absent.get("peak", "memory was not measured"))
        return {column.name: unknown for column in (*_PEAKS, *_DEVICE_PEAKS)}
    highest, start = peak.peak_rss_bytes, peak.start_rss_bytes
    why = peak.absent.get("peak_rss_bytes") or peak.absent.get("start_rss_bytes", _UNREAD)
    host = ("peak_rss_bytes", "load_peak_rss_bytes", "rss_anon_bytes", "rss_file_bytes")
    return {
        **{name: _or(getattr(peak, name), peak.absent.get(name, _UNREAD)) for name in host},
        "peak_rss_growth_bytes": Missing(why) if highest is None or start is None else highest - start,
        "peak_device_allocated_bytes": _on_device(peak.device_allocated_bytes),
        "peak_device_reserved_bytes": _on_device(peak.device_reserved_bytes),
        "load_peak_device_allocated_bytes": _on_device(peak.load_device_allocated_bytes),
        "peak_device_process_bytes": _or(peak.device_process_bytes, peak.absent.get("device_process_bytes", _ON_CPU)),
        "peak_device_used_bytes": _or(peak.device_used_bytes, peak.absent.get("device_used_bytes", _ON_CPU)),
        "device_context_bytes": _or(peak.device_context_bytes, peak.absent.get("device_context_bytes", _ON_CPU)),
    }


def _on_device(count: int | None) -> Value:
    if count == 0:
        return Missing("torch's allocator held nothing there: this runtime allocates device memory itself, unseen by torch")
    return _or(count, _ON_CPU)


def _or(value: float | None, reason: str) -> Value:
    return Missing(reason) if value is None else value
