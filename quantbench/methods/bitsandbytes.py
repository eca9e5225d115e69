"""bitsandbytes: LLM.int8() and 4-bit blocks, quantized while loading; what was saved quantized loads as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantbench.core.errors import UnsupportedError
from quantbench.core.scenario import Precision, Spec
from quantbench.methods import LoadedModel, Settings, method
from quantbench.models.architecture import Architecture, Tensor
from quantbench.models.footprint import Weights
from quantbench.runtimes.transformers.forecast import class_name, layers_of, left_note, mixed_bytes, sides
from quantbench.runtimes.transformers.model import TransformersModel, load_pretrained

INT8 = Precision(name="int8", bits=8, title="INT8")
NF4 = Precision(name="nf4", bits=4, title="NF4")
NF4_DQ = Precision(name="nf4-dq", bits=4, title="NF4, double quantization", first=False)
FP4 = Precision(name="fp4", bits=4, title="FP4", first=False)

_BLOCK, _NESTED_BLOCK = 64, 256
"""How many weights share a scale, and, with double quantization, how many scales share a scale of their own."""

_FLOAT32 = 4
_UPPER_BOUND = (
    "speeds are an upper bound: with random weights hardly an activation exceeds LLM.int8's threshold of 6, so that no columns "
    "are multiplied in 16 bits, as some are in every layer of a real model"
)
"""bitsandbytes 0.50.2, backends/default/ops.py: int8_mixed_scaled_mm takes columns of outliers only where there are some."""


@method(
    "bitsandbytes",
    precisions=[INT8, NF4, NF4_DQ, FP4],
    requires=["torch", "transformers", "accelerate", "bitsandbytes"],
    reads=["bitsandbytes"],
    costly_on_cpu="slower than fp32 on a CPU",
)
@contextmanager
def open_bitsandbytes(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """Quantized on load to INT8 (LLM.int8) or 4-bit blocks of 64 (NF4, FP4)"""
    bound = spec.variant.precision == "int8" and settings.checkpoint.random_weights
    found = {"note": _UPPER_BOUND} if bound else {}
    yield TransformersModel(_load(spec, settings), f"bitsandbytes-{spec.variant.precision}", _state_bytes, found=found)


@open_bitsandbytes.forecasts
def forecast_bitsandbytes(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """Linear and Conv1D layers of the blocks as bitsandbytes stores them, the rest in the dtype it is loaded in."""
    layers = layers_of(architecture, "linear", "conv1d", exact=True)
    if not layers:
        return dict.fromkeys(precisions, Weights(weight_bytes=None, note=_nothing_taken(class_name(architecture))))
    return {each: _weights(architecture, layers, each) for each in precisions}


def _weights(architecture: Architecture, layers: Sequence[Tensor], precision: str) -> Weights:
    stored = {layer.name: _stored_bytes(*sides(layer), precision) for layer in layers}
    dtype = "fp16" if precision == "int8" else "bf16"
    note = left_note(architecture, dtype, stored)
    if precision != "int8":
        note += "; as loaded: a CPU with AVX512-BF16 repacks the weights at the first forward"
    return Weights(weight_bytes=mixed_bytes(architecture, dtype, stored), dtype=dtype, note=note)


def _stored_bytes(outputs: int, inputs: int, precision: str) -> int:
    """Bytes of a layer's weight with its state; every layer keeps its own code tables."""
    weights = outputs * inputs
    if precision == "int8":
        return weights + _FLOAT32 * outputs
    blocks = -(-weights // _BLOCK)
    codes = -(-weights // 2) + _FLOAT32 * 2**4
    if not precision.endswith("-dq"):
        return codes + _FLOAT32 * blocks
    nested, table, offset = -(-blocks // _NESTED_BLOCK), 2**8, 1
    return codes + blocks + _FLOAT32 * (nested + table + offset)


def _nothing_taken(name: str) -> str:
    return (
        f"bitsandbytes quantizes layers of torch's Linear class and Conv1D, and {name} has none but its output layer; use a "
        "method that supports its layers, such as torchao or gguf"
    )


@open_bitsandbytes.holds
def held_bitsandbytes(quantization: Mapping[str, Any]) -> Sequence[str]:
    """The precision of a saved checkpoint, by transformers' BitsAndBytesConfig."""
    if quantization.get("load_in_8bit"):
        return [INT8.name]
    kind = str(quantization.get("bnb_4bit_quant_type", ""))
    name = kind + "-dq" * bool(quantization.get("bnb_4bit_use_double_quant"))
    return [each.name for each in (NF4, NF4_DQ, FP4) if each.name == name and quantization.get("load_in_4bit")]


@open_bitsandbytes.saves
def save_bitsandbytes(spec: Spec, settings: Settings, out: Path) -> None:
    """Write the quantized checkpoint."""
    _load(spec, settings).save_pretrained(out)


def _load(spec: Spec, settings: Settings) -> Any:
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from transformers import BitsAndBytesConfig

    precision = spec.variant.precision
    dtype = "bfloat16"
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=precision.removesuffix("-dq"),
        bnb_4bit_use_double_quant=precision.endswith("-dq"),
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    if precision == "int8":  # LLM.int8() computes in float16; it casts any other dtype, with a warning at every call
        dtype, config = "float16", BitsAndBytesConfig(load_in_8bit=True)
    model = load_pretrained(settings, spec.conditions.device, dtype=dtype, **_unless_saved(settings, config))
    if not any(isinstance(module, Linear4bit | Linear8bitLt) for module in model.modules()):
        raise UnsupportedError(_nothing_taken(type(model).__name__))
    return model


def _unless_saved(settings: Settings, config: Any) -> dict[str, Any]:
    """The configuration to quantize by; a checkpoint that was saved quantized has its own."""
    return {} if settings.checkpoint.quantized else {"quantization_config": config}


def _state_bytes(model: Any) -> int:
    """Bytes of the tensors that bitsandbytes keeps beside its packed weights, each storage once."""
    import torch

    seen: dict[int, int] = {}

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            seen[value.data_ptr()] = value.numel() * value.element_size()

    for module in model.modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        for owner in (state, getattr(state, "state2", None)):
            for name in ("absmax", "code", "offset"):
                add(getattr(owner, name, None))
        for owner in (weight, getattr(module, "state", None)):
            for name in ("SCB", "CB"):
                add(getattr(owner, name, None))
    packed = {weight.data_ptr() for weight in model.parameters()}
    return sum(count for pointer, count in seen.items() if pointer not in packed)
