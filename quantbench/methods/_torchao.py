"""torchao's quantization configurations, what their kernels need, and which kernel a loaded model has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from quantbench.errors import ModelError, UnsupportedError
from quantbench.methods import Settings
from quantbench.methods._transformers import TransformersModel, load_pretrained

GROUP_SIZE = 32
"""Weights of one group that share a scale in the 4-bit precisions."""

_NOTHING: Mapping[str, str] = MappingProxyType({})
_NEEDS_CUDA = {"int4-wo": (8, 0), "fp8": (8, 9)}
"""Least compute capability of the only kernels that these precisions have."""


def require_kernel(precision: str, device: str) -> None:
    """Raise UnsupportedError where torchao has no kernel for a precision."""
    if precision not in _NEEDS_CUDA:
        return
    import torch

    major, minor = _NEEDS_CUDA[precision]
    if device == "cpu":
        raise UnsupportedError(f"torchao {precision} has kernels for CUDA only; run it with --device cuda")
    if torch.cuda.get_device_capability(device) < (major, minor):
        raise UnsupportedError(f"torchao {precision} needs compute capability {major}.{minor}; this GPU has less")


def base_config(precision: str) -> Any:
    """The configuration of torchao for a precision. The 4-bit one that runs anywhere keeps each weight in 8 bits."""
    import torch
    from torchao import quantization as ao
    from torchao.quantization.granularity import PerAxis, PerGroup

    match precision:
        case "int8-wo":
            return ao.Int8WeightOnlyConfig()
        case "int8-dyn":
            return ao.Int8DynamicActivationInt8WeightConfig()
        case "intx4-wo":
            return ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP_SIZE))
        case "intx8-dyn":
            return ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
        case "int4-wo":
            return ao.Int4WeightOnlyConfig(group_size=GROUP_SIZE)
        case "fp8":
            return ao.Float8DynamicActivationFloat8WeightConfig()
    raise AssertionError(precision)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torchao says at import of GPU libraries that it could not load: nothing here asked for them."""
    import logging
    import warnings

    logger = logging.getLogger("torchao")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def load_quantized(settings: Settings, device: str, precision: str, found: Mapping[str, str] = _NOTHING) -> TransformersModel:
    """The checkpoint quantized while loading, in bfloat16 as far as it is not quantized; ``found`` are further facts."""
    with quiet():
        from transformers import TorchAoConfig

        config = TorchAoConfig(base_config(precision))
        model = load_pretrained(settings, device, dtype="bfloat16", quantization_config=config)
    return TransformersModel(model, kernel=f"torchao-{weight_class(model)}", found=found)


def weight_class(model: Any) -> str:
    """The tensor class of the quantized weights, as found; ModelError when nothing was quantized."""
    found = Counter(type(weight).__name__ for weight in model.parameters() if hasattr(weight, "__tensor_flatten__"))
    if not found:
        raise ModelError("torchao left every weight as it was; it knows none of this model's layers")
    activations = {"act_quant_kwargs", "activation_quantization"}
    dynamic = any(getattr(weight, name, None) is not None for weight in model.parameters() for name in activations)
    return "+".join(sorted(found)) + ("-dynamic-activations" if dynamic else "")
