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
_EMULATED = ("mxfp8", "mxfp4", "nvfp4-wo")
"""Precisions whose every multiplication dequantizes first: MX formats have kernels on a Blackwell, NVFP4 weights alone none."""

_UNTIMED = (
    "torchao/{} is emulated here: every multiplication dequantizes the weights first, and that speed is not the format's; "
    "measure a server that has a kernel for it with --method server"
)
_TILED = ("int4-wo", "int4-hqq")
_IN_GROUPS = ("intx4-wo", "intx4-hqq", *_TILED)
_GROUPED = (*_IN_GROUPS, "mxfp8", "mxfp4")
_KNOWN = ("int8-wo", "int8-dyn", "intx8-dyn", "fp8", *_GROUPED, "nvfp4-wo")
_NEEDS_CUDA = {"int4-wo": (8, 0), "int4-hqq": (8, 0), "fp8": (8, 9)}
"""Least compute capability of the only kernels that these precisions have."""

_TILE = (8, 1024)
"""torch's INT4 kernels take multiples of these outputs and inputs; torchao pads to them."""

_FP8_MULTIPLE = 16
"""Both sides of a layer must be a multiple of this for torchao to quantize it to FP8, or to NVFP4."""

_ALGORITHMS = ("intx_choose_qparams_algorithm", "int4_choose_qparams_algorithm")
"""Keys of torchao's configurations that say how scales are found."""

_SCALE_ROWS, _SCALE_COLUMNS = 128, 4
"""Scales of the MX formats and of NVFP4 are stored in whole blocks of so many, as tensor cores read them."""


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
    padded = precision in _TILED and any(_tiled(*sides) != sides for sides in layers.values())
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
    if odd and precision in _GROUPED:
        return (
            f"torchao/{precision} works on groups of {GROUP_SIZE} weights, and these do not divide the rows of {length} of "
            f"{odd}; use an {'INT8' if precision in _EMULATED else '8-bit'} precision"
        )
    odd = next((layer for layer, sides in layers.items() if any(side % _FP8_MULTIPLE for side in sides)), "")
    if odd and precision == "nvfp4-wo":
        return f"torchao/{precision} takes sides that {_FP8_MULTIPLE} divides, and {odd} has others; use an INT8 precision"
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
        case "intx4-wo" | "intx4-hqq":
            return codes + codes // GROUP_SIZE * (2 + 1)
        case "int4-wo" | "int4-hqq":
            codes = math.prod(_tiled(outputs, inputs))
            return codes // 2 + codes // GROUP_SIZE * (2 + 2)
    return _float_bytes(precision, outputs, inputs)


def _float_bytes(precision: str, outputs: int, inputs: int) -> int:
    codes = outputs * inputs
    match precision:
        case "fp8":
            return codes + 4
        case "mxfp8" | "mxfp4":
            return codes // (1 if precision == "mxfp8" else 2) + _scales_in_blocks(outputs, inputs // GROUP_SIZE)
        case "nvfp4-wo":
            return codes // 2 + _scales_in_blocks(outputs, inputs // _FP8_MULTIPLE) + 4
    raise AssertionError(precision)


def _scales_in_blocks(rows: int, columns: int) -> int:
    """Bytes of scales of one byte each, filled up to whole blocks."""
    return -(-rows // _SCALE_ROWS) * _SCALE_ROWS * -(-columns // _SCALE_COLUMNS) * _SCALE_COLUMNS


def base_config(precision: str) -> Any:
    """The configuration of torchao for a precision. The 4-bit one that runs anywhere keeps each weight in 8 bits."""
    import torch
    from torchao import quantization as ao
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm, IntxChooseQParamsAlgorithm

    match precision:
        case "int8-wo":
            return ao.Int8WeightOnlyConfig()
        case "int8-dyn":
            return ao.Int8DynamicActivationInt8WeightConfig()
        case "intx4-wo" | "intx4-hqq":
            scales = IntxChooseQParamsAlgorithm("hqq_scale_only" if precision == "intx4-hqq" else "affine")
            groups = PerGroup(GROUP_SIZE)
            return ao.IntxWeightOnlyConfig(torch.int4, granularity=groups, intx_choose_qparams_algorithm=scales)
        case "intx8-dyn":
            return ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
        case "int4-wo" | "int4-hqq":
            tiled = "tile_packed_to_4d"  # torch's own kernels; the default packing needs another library
            found = Int4ChooseQParamsAlgorithm("hqq" if precision == "int4-hqq" else "tinygemm")
            return ao.Int4WeightOnlyConfig(GROUP_SIZE, int4_packing_format=tiled, int4_choose_qparams_algorithm=found)
    return _float_config(precision)


def _float_config(precision: str) -> Any:
    import torch
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig

    if precision == "fp8":
        return Float8DynamicActivationFloat8WeightConfig()
    from torchao.prototype import mx_formats as mx
    from torchao.quantization.quantize_.common import KernelPreference

    match precision:
        case "mxfp8" | "mxfp4":
            dtype = torch.float8_e4m3fn if precision == "mxfp8" else torch.float4_e2m1fn_x2
            return mx.MXDynamicActivationMXWeightConfig(
                activation_dtype=dtype, weight_dtype=dtype, kernel_preference=KernelPreference.EMULATED
            )
        case "nvfp4-wo":
            return mx.NVFP4WeightOnlyConfig()
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
    kernel, untimed = f"torchao-{weight_class(model)}", ""
    if precision in _EMULATED:
        kernel, untimed = f"{kernel}-emulated", _UNTIMED.format(precision)
    return TransformersModel(model, kernel=kernel, found=found, decode_path=compiled, untimed=untimed)


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
    """What distinguishes precisions in a configuration: its class, the dtype of the weights if it has a choice, and HQQ."""
    data = config.get("_data", {})
    hqq = any("HQQ" in str(data.get(key)).upper() for key in _ALGORITHMS)
    return str(config.get("_type")), json.dumps([data.get("weight_dtype"), hqq], sort_keys=True)
