"""torchao's quantization configurations, what their kernels need, and which kernel a loaded model has."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.protocols import Settings
from quantbench.models.architecture import Architecture
from quantbench.models.config import read_config
from quantbench.models.footprint import Weights
from quantbench.runtimes.transformers.forecast import class_name, joined, layers_of, left_note, mixed_bytes
from quantbench.runtimes.transformers.forecast import sides as sides_of
from quantbench.runtimes.transformers.model import TransformersModel, load_pretrained

GROUP_SIZE = 32
"""Weights of one group that share a scale in the 4-bit precisions."""

_NOTHING: Mapping[str, str] = MappingProxyType({})
_IN_GROUPS = ("intx4-wo", "int4-wo")
_KNOWN = ("int8-wo", "int8-dyn", "intx8-dyn", "intx4-wo", "int4-wo", "fp8")
_NEEDS_CUDA = {"int4-wo": (8, 0), "fp8": (8, 9)}
"""Least compute capability of the only kernels that these precisions have."""

_TILE = (8, 1024)
"""torch's INT4 kernels take multiples of these outputs and inputs; torchao pads to them."""

_FP8_MULTIPLE = 16
"""Both sides of a layer must be a multiple of this for torchao to quantize it to FP8."""


def require_kernel(precision: str, device: str) -> None:
    """Raise UnsupportedError where torchao has no kernel for a precision."""
    if precision not in _NEEDS_CUDA:
        return
    import torch

    least = _NEEDS_CUDA[precision]
    found = "the CPU" if device == "cpu" else "no CUDA device"
    if device != "cpu" and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability(device)
        if capability >= least:
            return
        found = f"compute capability {capability[0]}.{capability[1]}"
    raise UnsupportedError(
        f"torchao/{precision} needs a CUDA device of compute capability {least[0]}.{least[1]} or newer, where its only kernels "
        f"are, and found {found}; intx4-wo and the int8 precisions run anywhere"
    )


def check_layers(settings: Settings, precision: str) -> None:
    """Raise UnsupportedError where torchao cannot quantize a model's Linear layers to a precision; reads no weight."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    checkpoint = settings.checkpoint
    trusted = {"trust_remote_code": checkpoint.trust_remote_code}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint.path, **trusted), **trusted)
    sides = {name: (layer.out_features, layer.in_features) for name, layer in _linear_layers(model).items()}
    if reason := _refusal(precision, sides, type(model).__name__):
        raise UnsupportedError(reason)


def forecast(architecture: Architecture, precision: str) -> Weights:
    """Linear layers of the blocks as torchao's tensor classes store them, the rest in bfloat16."""
    layers = {tensor.name: sides_of(tensor) for tensor in layers_of(architecture, "linear")}
    named = {name.removesuffix(".weight"): sides for name, sides in layers.items()}
    if reason := _refusal(precision, named, class_name(architecture)):
        return Weights(weight_bytes=None, note=reason)
    stored = {name: _stored_bytes(precision, *sides) for name, sides in layers.items() if _taken(precision, *sides)}
    padded = precision == "int4-wo" and any(_tiled(*sides) != sides for sides in layers.values())
    note = joined(
        "CUDA only" if precision in _NEEDS_CUDA else "",
        f"padded to {_TILE[0]} outputs and {_TILE[1]} inputs or multiples of them" if padded else "",
        left_note(architecture, "bf16", stored),
    )
    return Weights(weight_bytes=mixed_bytes(architecture, "bf16", stored), dtype="bf16", note=note)


def _refusal(precision: str, layers: Mapping[str, tuple[int, int]], name: str) -> str:
    """Why torchao cannot quantize a model class's Linear layers of these outputs and inputs; empty if it can."""
    if not layers:
        return f"torchao quantizes Linear layers, and {name} has none but its output layer; use another method"
    odd, length = next(((layer, inputs) for layer, (_, inputs) in layers.items() if inputs % GROUP_SIZE), ("", 0))
    if odd and precision in _IN_GROUPS:
        return (
            f"torchao/{precision} works on groups of {GROUP_SIZE} weights, and these do not divide the rows of {length} of "
            f"{odd}; use an 8-bit precision"
        )
    if not any(_taken(precision, *sides) for sides in layers.values()):
        return (
            f"torchao/{precision} takes layers whose outputs and inputs are multiples of {_FP8_MULTIPLE}, and {name} has none "
            "such; use an INT8 precision"
        )
    return ""


def _taken(precision: str, outputs: int, inputs: int) -> bool:
    """Whether torchao quantizes a layer at all; one that it skips stays as it is."""
    return precision != "fp8" or not (outputs % _FP8_MULTIPLE or inputs % _FP8_MULTIPLE)


def _tiled(outputs: int, inputs: int) -> tuple[int, int]:
    """Outputs and inputs in whole tiles of torch's INT4 kernels."""
    return -(-outputs // _TILE[0]) * _TILE[0], -(-inputs // _TILE[1]) * _TILE[1]


def _stored_bytes(precision: str, outputs: int, inputs: int) -> int:
    """Bytes of a layer's weight: its codes, and scales and zero points of their own dtypes."""
    codes = outputs * inputs
    match precision:
        case "int8-wo" | "int8-dyn":
            return codes + outputs * (4 + 1)
        case "intx8-dyn":
            return codes + outputs * (2 + 1)
        case "intx4-wo":
            return codes + codes // GROUP_SIZE * (2 + 1)
        case "int4-wo":
            codes = math.prod(_tiled(outputs, inputs))
            return codes // 2 + codes // GROUP_SIZE * (2 + 2)
        case "fp8":
            return codes + 4
    raise AssertionError(precision)


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
            tiled = "tile_packed_to_4d"  # torch's own kernels; the default packing needs another library
            return ao.Int4WeightOnlyConfig(group_size=GROUP_SIZE, int4_packing_format=tiled)
        case "fp8":
            return ao.Float8DynamicActivationFloat8WeightConfig()
    raise AssertionError(precision)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torchao's warnings at import about GPU libraries that it could not load: nothing here needs them."""
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
    """The checkpoint quantized while loading, in bfloat16 as far as it is not quantized; ``found`` are further facts.

    A checkpoint that torchao quantized is loaded as it is; UnsupportedError when that is another precision.
    """
    with quiet():
        from transformers import TorchAoConfig

        checkpoint = settings.checkpoint
        if checkpoint.quantized:
            found = {**found, "quantization": _check_agrees(checkpoint, precision)}
            model = load_pretrained(settings, device, dtype="auto")
        else:
            check_layers(settings, precision)
            config = TorchAoConfig(base_config(precision))
            model = load_pretrained(settings, device, dtype="bfloat16", quantization_config=config)
    # torchao's INT8 and FP8 kernels come of torch.compile: eagerly each call converts the whole weight (its int8_tensor.py).
    compiled = "compiled" if device != "cpu" and precision not in _IN_GROUPS else ""
    return TransformersModel(model, kernel=f"torchao-{weight_class(model)}", found=found, decode_path=compiled)


def weight_class(model: Any) -> str:
    """The tensor class of the quantized weights, as found, and how many layers were left; ModelError when all were."""
    weights = [weight for weight in model.parameters() if _wrapped(weight)]
    if not weights:
        raise ModelError("transformers loaded the checkpoint without one quantized weight; its quantization_config is damaged")
    activations = ("act_quant_kwargs", "activation_quantization")
    dynamic = any(getattr(weight, name, None) is not None for weight in weights for name in activations)
    layers = _linear_layers(model).values()
    left = sum(not _wrapped(layer.weight) for layer in layers)
    return (
        "+".join(sorted({type(weight).__name__ for weight in weights}))
        + ("-dynamic-activations" if dynamic else "")
        + (f" ({left} of {len(layers)} layers left in {str(model.dtype).removeprefix('torch.')})" if left else "")
    )


def _wrapped(weight: Any) -> bool:
    return hasattr(weight, "__tensor_flatten__")


def _linear_layers(model: Any) -> dict[str, Any]:
    """The Linear layers that are to be quantized, by name: all but the output layer."""
    from torch.nn import Linear

    output = model.get_output_embeddings()
    return {name: each for name, each in model.named_modules() if isinstance(each, Linear) and each is not output}


def _check_agrees(checkpoint: Checkpoint, precision: str) -> str:
    """The configuration that a checkpoint was quantized with, as JSON; UnsupportedError if it is not of ``precision``.

    Its group size and packing may be others than those used here.
    """
    from torchao.core.config import config_to_dict

    config = read_config(checkpoint.path)["quantization_config"].get("quant_type")
    body = config.get("default") if isinstance(config, dict) else None
    kinds = {_kind(config_to_dict(base_config(name))): name for name in _KNOWN}
    name = kinds.get(_kind(body)) if isinstance(body, dict) else None
    if name != precision:
        what = f"torchao/{name}" if name else f"torchao's {body.get('_type') if isinstance(body, dict) else config}"
        mend = "ask for what it is" if name else "give the checkpoint that it was made from"
        raise UnsupportedError(f"{checkpoint.name} is quantized as {what} and torchao/{precision} was asked for; {mend}")
    return json.dumps(body)


def _kind(config: Mapping[str, Any]) -> tuple[str, str]:
    """What distinguishes precisions in a configuration: its class, and the dtype of the weights if it has a choice."""
    return str(config.get("_type")), json.dumps(config.get("_data", {}).get("weight_dtype"), sort_keys=True)
