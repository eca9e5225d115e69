"""torchao: quantized while loading to tensor subclasses, which PyTorch's kernels or torchao's own multiply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantbench.core.scenario import Precision, Spec
from quantbench.methods import LoadedModel, Settings, method
from quantbench.models.architecture import Architecture
from quantbench.models.footprint import Weights
from quantbench.runtimes.transformers import torchao as ao
from quantbench.runtimes.transformers.model import TransformersModel

INT8_WO = Precision(name="int8-wo", bits=8, title="INT8, weights only")
INT8_DYN = Precision(name="int8-dyn", bits=8, title="INT8, activations too", first=False)
INTX8_DYN = Precision(name="intx8-dyn", bits=8, title="INT8, asymmetric activations too", usual=False)
INTX4_WO = Precision(name="intx4-wo", bits=4, title="INT4 in 8-bit storage", first=False)
INT4_WO = Precision(name="int4-wo", bits=4, title="INT4, weights only", first=False)
FP8 = Precision(name="fp8", bits=8, title="FP8, activations too", first=False)
INTX4_HQQ = Precision(name="intx4-hqq", bits=4, title="INT4 by HQQ in 8-bit storage", usual=False, first=False)
INT4_HQQ = Precision(name="int4-hqq", bits=4, title="INT4 by HQQ, weights only", usual=False, first=False)
MXFP8 = Precision(name="mxfp8", bits=8, title="MXFP8, activations too, emulated", usual=False, first=False)
MXFP4 = Precision(name="mxfp4", bits=4, title="MXFP4, activations too, emulated", usual=False, first=False)
NVFP4_WO = Precision(name="nvfp4-wo", bits=4, title="NVFP4, weights only, emulated", usual=False, first=False)

_CLASSES: Mapping[str, str] = {
    "Int8WeightOnlyConfig": INT8_WO.name, "Int8DynamicActivationInt8WeightConfig": INT8_DYN.name,
    "IntxWeightOnlyConfig": INTX4_WO.name, "Int8DynamicActivationIntxWeightConfig": INTX8_DYN.name,
    "Int4WeightOnlyConfig": INT4_WO.name, "Float8DynamicActivationFloat8WeightConfig": FP8.name,
}  # fmt: skip
"""Torchao's configurations as a checkpoint names them; loading checks what else is in one."""


@method(
    "torchao",
    precisions=[INT8_WO, INT8_DYN, INTX8_DYN, INTX4_WO, INT4_WO, FP8, INTX4_HQQ, INT4_HQQ, MXFP8, MXFP4, NVFP4_WO],
    requires=["torch", "transformers", "torchao"],
    reads=["torchao"],
    costly_on_cpu="slower than fp32 on a CPU",
)
@contextmanager
def open_torchao(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """Quantized on load to torchao's tensor classes"""
    yield _load(spec, settings)


@open_torchao.forecasts
def forecast_torchao(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """See quantbench.runtimes.transformers.torchao.forecast."""
    return {each: ao.forecast(architecture, each) for each in precisions}


@open_torchao.holds
def held_torchao(quantization: Mapping[str, Any]) -> Sequence[str]:
    """The precision of a saved checkpoint, by the class of torchao's configuration."""
    kind = quantization.get("quant_type")
    body = kind.get("default") if isinstance(kind, dict) else None
    name = _CLASSES.get(str(body.get("_type"))) if isinstance(body, dict) else None
    return [name] if name else [each.name for each in open_torchao.precisions]


@open_torchao.saves
def save_torchao(spec: Spec, settings: Settings, out: Path) -> None:
    """Write the quantized checkpoint."""
    _load(spec, settings).model.save_pretrained(out)


def _load(spec: Spec, settings: Settings) -> TransformersModel:
    precision, device = spec.variant.precision, spec.conditions.device
    ao.require_kernel(precision, device)
    return ao.load_quantized(settings, device, precision)
