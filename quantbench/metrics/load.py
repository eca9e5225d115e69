"""How long it takes until the model is ready to use."""

from __future__ import annotations

from collections.abc import Mapping

from quantbench.core.record import Column, Missing, Value
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric


@metric(
    Column(
        "import_s", "s", "lower", doc="imports of the method's libraries, those of the fork server included",
        formula="sum over the libraries of the time of their first import", source="quantbench",
    ),
    Column(
        "load_s", "s", "lower", title="Load", shown="report", place=13,
        doc="opening the model, files in the page cache; with on-load quantization, without CUDA's context",
        formula="t(model open, device idle) - t(asked to open)", source="quantbench",
    ),
    Column(
        "quantize_s", "s", "lower", doc="making the quantized file, when it was made; conversion not included",
        formula="time of the quantization, pruning or training alone", source="quantbench",
    ),
)  # fmt: skip
def load(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Import, load and quantization time"""
    elsewhere = "its files were used as they are: quantized elsewhere, or on another device, or not at all"
    at_load = "this method has no separate quantization step: it quantizes while loading (load_s)"
    separate = Missing(trace.absent.get("quantize_s", elsewhere if trace.prequantized else at_load))
    return {
        "import_s": Missing(trace.absent["import_s"]) if "import_s" in trace.absent else trace.import_s,
        "load_s": Missing(trace.absent.get("load_s", "nothing is loaded here")) if trace.load_s is None else trace.load_s,
        "quantize_s": separate if trace.quantize_s is None else trace.quantize_s,
    }
