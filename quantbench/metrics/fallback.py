"""Tensors of a GGUF file that are stored in another type than its name promises."""

from __future__ import annotations

from collections.abc import Mapping

from quantbench.core.record import Column, Missing, Value
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric

_NOT_GGUF = "this is not a GGUF file, and only those have types that fall back to others"
_READY = "an existing GGUF file does not say which of its tensors fell back; llama.cpp says so only while it quantizes"
_SOURCE = "llama.cpp's log of the quantization (tensor_type_fallback in llama-quant.cpp)"


@metric(
    Column(
        "fallback_tensors", "tensors", kind="int", doc="tensors of another type than the recipe gives: rows do not fill blocks",
        formula="tensors whose rows are not a multiple of the block of their type in llama.cpp's recipe, as it counts; not the "
        "output layer (or the embedding that is one), for which the recipe itself takes Q8_0 at such rows",
        source=_SOURCE,
    ),
    Column(
        "fallback_bytes", "bytes", kind="int", doc="bytes that those tensors take in the types they got instead",
        formula="sum over those tensors of their bytes in the file", source=_SOURCE,
    ),
)  # fmt: skip
def fallback(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Tensors and bytes of a GGUF file that fell back to other types"""
    missing = Missing(_READY if trace.facts.get("kernel", "").startswith("llama.cpp") else _NOT_GGUF)
    names = ("fallback_tensors", "fallback_bytes")
    return {name: int(trace.facts[name]) if name in trace.facts else missing for name in names}
