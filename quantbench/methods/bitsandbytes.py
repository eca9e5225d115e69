"""bitsandbytes: LLM.int8() and 4-bit blocks, quantized while loading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantbench.methods import LoadedModel, Settings, method
from quantbench.methods._transformers import TransformersModel, load_pretrained
from quantbench.scenario import Precision, Scenario

INT8 = Precision(name="int8", bits=8, title="INT8")
NF4 = Precision(name="nf4", bits=4, title="NF4")
NF4_DQ = Precision(name="nf4-dq", bits=4, title="NF4, double quantization")
FP4 = Precision(name="fp4", bits=4, title="FP4")


@method("bitsandbytes", precisions=[INT8, NF4, NF4_DQ, FP4], requires=["torch", "transformers", "accelerate", "bitsandbytes"])
@contextmanager
def open_bitsandbytes(scenario: Scenario, settings: Settings) -> Iterator[LoadedModel]:
    """Quantized on load to INT8 (LLM.int8) or 4-bit blocks of 64 (NF4, FP4)"""
    yield TransformersModel(_load(scenario, settings), f"bitsandbytes-{scenario.variant.precision}", _state_bytes)


@open_bitsandbytes.saves
def save_bitsandbytes(scenario: Scenario, settings: Settings, out: Path) -> None:
    """Write the quantized checkpoint."""
    _load(scenario, settings).save_pretrained(out)


def _load(scenario: Scenario, settings: Settings) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    precision = scenario.variant.precision
    device = scenario.conditions.device
    if precision == "int8":  # LLM.int8() computes in float16 and casts, with a warning a call, whatever else it is given
        return load_pretrained(settings, device, quantization_config=BitsAndBytesConfig(load_in_8bit=True), dtype="float16")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=precision.removesuffix("-dq"),
        bnb_4bit_use_double_quant=precision.endswith("-dq"),
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return load_pretrained(settings, device, quantization_config=config, dtype="bfloat16")


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
