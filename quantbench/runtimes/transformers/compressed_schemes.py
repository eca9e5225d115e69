"""compressed-tensors' schemes by their names in the field, and the bytes that layers take in them; no torch is needed.

A ``quantization_config`` of the method ``compressed-tensors`` has groups of layers with a scheme each: how their weights and
activations are quantized, in the words of the package's own QuantizationArgs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantbench.core.scenario import Precision
from quantbench.core.text import quoted
from quantbench.models.architecture import Architecture, Tensor
from quantbench.models.footprint import Weights
from quantbench.models.safetensors import Stored, as_written, file_bytes, stored_bytes
from quantbench.runtimes.transformers.forecast import joined, sides

Arguments = Mapping[str, Any]

METHOD = "compressed-tensors"
PRECISIONS = (
    Precision(name="w4a16-g128", bits=4, title="INT4, groups of 128", usual=False),
    Precision(name="w4a16-g64", bits=4, title="INT4, groups of 64", usual=False),
    Precision(name="w4a16-g32", bits=4, title="INT4, groups of 32", usual=False),
    Precision(name="w4a16", bits=4, title="INT4, a scale for each row", usual=False),
    Precision(name="w8a16-g128", bits=8, title="INT8, groups of 128", usual=False),
    Precision(name="w8a16", bits=8, title="INT8, a scale for each row", usual=False),
    Precision(name="w8a8", bits=8, title="INT8, activations too", usual=False),
    Precision(name="fp8", bits=8, title="FP8, activations too, on fixed scales", usual=False),
    Precision(name="fp8-dynamic", bits=8, title="FP8, activations too", usual=False),
    Precision(name="fp8-block", bits=8, title="FP8 in blocks, activations too", usual=False),
    Precision(name="nvfp4", bits=4, title="NVFP4, activations too", usual=False),
    Precision(name="nvfp4a16", bits=4, title="NVFP4, weights only", usual=False),
    Precision(name="mxfp4", bits=4, title="MXFP4, activations too", usual=False),
    Precision(name="mxfp4a16", bits=4, title="MXFP4, weights only", usual=False),
)

FP4_FORMATS = ("nvfp4-pack-quantized", "mxfp4-pack-quantized")
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", *FP4_FORMATS)
"""How compressed-tensors 0.20 stores what is quantized to the precisions above."""

_MOST_REPEATS = 5
"""In a pattern of layers' names; those of publishers have one to three."""

_DENSE, _MIXED = "dense", "mixed-precision"
_COMPRESSED = "compressed"
_CLASSES: Mapping[str, str] = {"linear": "Linear", "output": "Linear", "embedding": "Embedding"}
"""torch's classes, by which a group may name its layers, of the tensors with these roles."""

_AS_USUAL = "as checkpoints are published: every Linear layer but the output layer"
_DTYPES: Mapping[str, tuple[str, str]] = {"float32": ("fp32", "F32"), "float16": ("fp16", "F16"), "bfloat16": ("bf16", "BF16")}
_TOKEN = {"type": "int", "num_bits": 8, "strategy": "token", "dynamic": True}
_TOKEN_FP8 = {**_TOKEN, "type": "float"}
_FIXED_FP8 = {"type": "float", "num_bits": 8, "strategy": "tensor", "dynamic": False}
_GROUPS_FP8 = {"type": "float", "num_bits": 8, "strategy": "group", "group_size": 128, "dynamic": True}
_NVFP4 = {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16, "dynamic": False}
_MXFP4 = {"type": "float", "num_bits": 4, "strategy": "group", "group_size": 32, "dynamic": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How the layers that ``targets`` name are quantized and stored: arguments as in a ``quantization_config``."""

    weights: Arguments
    inputs: Arguments | None
    format: str
    targets: tuple[str, ...] = ("Linear",)

    @property
    def name(self) -> str:
        """The precision's name; empty for a scheme that none stands for."""
        return _NAMES.get(_kind(self), "")

    def of(self, names: Sequence[str]) -> str:
        """The most specific of its targets that names a layer or its class; empty if none does."""
        return next((each for each in _specific_first(self.targets) if _names(each, names)), "")


def schemes(quantization: Mapping[str, Any]) -> list[Scheme]:
    """The groups of a ``quantization_config`` in order; what is missing or strange in one has no name."""
    groups = quantization.get("config_groups")
    found = []
    for each in groups.values() if isinstance(groups, Mapping) else ():
        group = each if isinstance(each, Mapping) else {}
        weights, inputs, targets = (group.get(key) for key in ("weights", "input_activations", "targets"))
        found.append(Scheme(
            weights=weights if isinstance(weights, Mapping) else {},
            inputs=inputs if isinstance(inputs, Mapping) else None,
            format=str(group.get("format") or quantization.get("format")),
            targets=tuple(map(str, targets)) if isinstance(targets, list) else (),
        ))  # fmt: skip
    return found


def held(quantization: Mapping[str, Any]) -> list[str]:
    """The precisions that groups of layers of a checkpoint have; none for schemes without a name here."""
    return list(dict.fromkeys(scheme.name for scheme in schemes(quantization) if scheme.name))


def refusal(quantization: Mapping[str, Any]) -> str:
    """Why a checkpoint with this ``quantization_config`` is not measured; empty if it is."""
    groups = schemes(quantization)
    sparsity = quantization.get("sparsity_config")
    sparse = sparsity.get("format") or _DENSE if isinstance(sparsity, Mapping) else _DENSE
    strange = next((each.format for each in groups if each.format not in FORMATS), "")
    packed_zeros = any(not each.weights.get("symmetric", True) and each.format == "pack-quantized" for each in groups)
    names = ", ".join(each.name for each in PRECISIONS)
    patterns = (each for scheme in groups for each in (*scheme.targets, *_ignored(quantization)))
    endless = next((each for each in patterns if each.startswith("re:") and _may_be_endless(each)), "")
    reasons = {
        f"its weights are stored sparse ({sparse}), which compressed-tensors has stopped reading; give one that is not":
            sparse != _DENSE,
        "it quantizes keys and values too (kv_cache_scheme), which is not measured here; give one without":
            quantization.get("kv_cache_scheme"),
        f"its pattern {quoted(endless)} for names of layers may take forever to match; give one with simpler patterns":
            endless,
        "it rotates activations (transform_config), which transformers leaves out; give one without":
            quantization.get("transform_config"),
        f"its format {strange!r} is not read here; give one in {', '.join(FORMATS)}":
            strange,
        "its zero points are packed, for which transformers makes no room; give a symmetric one, or one in AWQ's format":
            packed_zeros,
        f"its layers do not all have one of the schemes {names}; give a checkpoint whose layers do":
            len({each.name for each in groups}) != 1 or not groups[0].name,
    }  # fmt: skip
    return next((sentence for sentence, applies in reasons.items() if applies), "")


def _ignored(quantization: Mapping[str, Any]) -> list[str]:
    ignored = quantization.get("ignore")
    return list(map(str, ignored)) if isinstance(ignored, list) else []


def _may_be_endless(pattern: str) -> bool:
    """Whether matching a regular expression, which a stranger wrote, may take more than moments, or fails.

    A group that is repeated may try exponentially many ways, many repeats in a row the power of their number.
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return True
    return bool(re.search(r"\)[*+{]", pattern)) or len(re.findall(r"[*+{]", pattern)) > _MOST_REPEATS


def current(quantization: Mapping[str, Any]) -> dict[str, Any]:
    """The same ``quantization_config`` as compressed-tensors 0.20 needs it.

    It decides a group's format by the group alone, and takes the weights of anything but the status ``compressed`` for plain
    ones; older writers named the format for all groups together, and left other states behind.
    """
    whole = quantization.get("format")
    groups = {
        name: {**group, "format": group.get("format") or whole} if isinstance(group, Mapping) and whole != _MIXED else group
        for name, group in quantization["config_groups"].items()
    }
    return {**quantization, "config_groups": groups, "quantization_status": _COMPRESSED}


def dtype_of(config: Mapping[str, Any], groups: Sequence[Scheme]) -> str:
    """Torch's name of the dtype that all is loaded in which is not quantized; FP4 is decompressed to bfloat16 only."""
    named = str(config.get("dtype") or config.get("torch_dtype"))
    return named if named in _DTYPES and not any(each.format in FP4_FORMATS for each in groups) else "bfloat16"


def forecast(architecture: Architecture, precision: str) -> Weights:
    """The file that save_pretrained writes, and the same tensors loaded.

    Of a checkpoint in ``precision`` they follow from its ``quantization_config``; of any other from what is usually published:
    all Linear layers but the output layer.
    """
    found = architecture.config.get("quantization_config")
    quantization: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    published = quantization.get("quant_method") == METHOD
    if published and (why := refusal(quantization)):
        return Weights(weight_bytes=None, note=why)
    if published and precision not in held(quantization):
        return Weights(weight_bytes=None, note=f"the checkpoint is {METHOD}/{held(quantization)[0]}")
    groups = schemes(quantization) if published else [_PRESETS[precision]]
    ignored = _ignored(quantization) if published else ["lm_head"]
    dtype, code = _DTYPES[dtype_of(architecture.config, groups)]
    if any(tensor.role == "experts" for tensor in architecture.tensors):
        return Weights(weight_bytes=None, dtype=dtype, note="published experts are layers of their own, and these are fused")
    tensors = list(_tensors(architecture, groups, ignored, code))
    return Weights(
        weight_bytes=sum(map(stored_bytes, tensors)) + architecture.buffer_bytes_in(stored_bytes(("", code, (1,)))),
        file_bytes=file_bytes(as_written(tensors)),
        dtype=dtype,
        note=joined("" if published else _AS_USUAL, f"without a kernel the first forward decompresses it to {dtype}"),
    )


def _tensors(architecture: Architecture, groups: Sequence[Scheme], ignored: Sequence[str], code: str) -> Iterator[Stored]:
    for tensor in architecture.tensors:
        scheme = _scheme_of(tensor, groups, ignored)
        if scheme is None:
            yield tensor.name, code, tensor.shape
        else:
            stem = tensor.name.removesuffix("weight")
            yield from ((stem + name, dtype, shape) for name, dtype, shape in _layer(scheme, *sides(tensor), code))


def _scheme_of(tensor: Tensor, groups: Sequence[Scheme], ignored: Sequence[str]) -> Scheme | None:
    """The scheme of a layer's weight, by the most specific target; None for what stays as it is."""
    if tensor.role not in _CLASSES:
        return None
    names = [tensor.name.removesuffix(".weight"), _CLASSES[tensor.role]]
    if any(_names(each, names) for each in ignored):
        return None
    found = {target: scheme for scheme in groups if (target := scheme.of(names))}
    return next((found[target] for target in _specific_first(found)), None)


def _specific_first(targets: Sequence[str] | Mapping[str, object]) -> list[str]:
    """Names of layers, then patterns, then classes."""
    return sorted(targets, key=lambda target: (target in _CLASSES.values(), target.startswith("re:"), target))


def _names(target: str, names: Sequence[str]) -> bool:
    """Whether a target of a group stands for a layer of this name and class."""
    pattern = target.removeprefix("re:")
    return bool(re.match(pattern, names[0])) if target.startswith("re:") else target in names


def _layer(scheme: Scheme, outputs: int, inputs: int, code: str) -> Iterator[Stored]:
    """The tensors of a layer of ``outputs`` x ``inputs`` weights, without its bias."""
    weights = scheme.weights
    scales = _scales(weights, outputs, inputs)
    if scheme.format in FP4_FORMATS:
        yield "weight_packed", "U8", (outputs, inputs // 2)
        yield "weight_scale", "U8" if scheme.format.startswith("mx") else "F8_E4M3", scales
        if weights.get("strategy") == "tensor_group":
            yield "weight_global_scale", "F32", (1,)
    elif scheme.format == "pack-quantized":
        yield "weight_packed", "I32", (outputs, math.ceil(inputs * weights["num_bits"] / 32))
        yield "weight_scale", code, scales
        yield "weight_shape", "I64", (2,)
    else:
        stored = "I8" if weights["type"] == "int" else "F8_E4M3"
        yield "weight", stored, (outputs, inputs)
        yield "weight_scale", code, scales
        if not weights.get("symmetric", True):
            yield "weight_zero_point", stored, scales
    if scheme.inputs and scheme.inputs.get("dynamic") == "local":
        yield "input_global_scale", "F32", (1,)
    elif scheme.inputs and not scheme.inputs.get("dynamic"):
        yield "input_scale", code, (1,)


def _scales(weights: Arguments, outputs: int, inputs: int) -> tuple[int, ...]:
    """The shape of a layer's scales."""
    if group := _group(weights):
        return outputs, math.ceil(inputs / group)
    if block := weights.get("block_structure"):
        return math.ceil(outputs / block[0]), math.ceil(inputs / block[1])
    return (outputs, 1) if weights.get("strategy") == "channel" or weights.get("group_size") else (1,)


def _kind(scheme: Scheme) -> str:
    """What distinguishes the precisions: bits, groups or blocks, and whether and how activations are quantized."""
    weights, inputs = scheme.weights, scheme.inputs
    activations = (inputs.get("type"), inputs.get("num_bits"), inputs.get("dynamic") or False) if inputs else None
    shared = weights.get("block_structure") or _group(weights)
    return repr((weights.get("type"), weights.get("num_bits"), shared, activations))


def _group(weights: Arguments) -> int:
    """How many weights of a row share a scale; 0 where a scale is for a row or more."""
    group = weights.get("group_size")
    return group if isinstance(group, int) and group > 0 else 0


def _whole_numbers(bits: int, group: int = 0, inputs: Arguments | None = None) -> Scheme:
    shared = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    weights = {"type": "int", "num_bits": bits, "dynamic": False, **shared}
    return Scheme(weights=weights, inputs=inputs, format="int-quantized" if inputs else "pack-quantized")


def _fp8(inputs: Arguments, **shared: object) -> Scheme:
    return Scheme(weights={**_FIXED_FP8, **shared}, inputs=inputs, format="float-quantized")


def _fp4(weights: Arguments, inputs: Arguments | None = None) -> Scheme:
    return Scheme(weights=weights, inputs=inputs, format=FP4_FORMATS[weights["strategy"] == "group"])


_PRESETS: Mapping[str, Scheme] = {
    "w4a16-g128": _whole_numbers(4, 128), "w4a16-g64": _whole_numbers(4, 64), "w4a16-g32": _whole_numbers(4, 32),
    "w4a16": _whole_numbers(4), "w8a16-g128": _whole_numbers(8, 128), "w8a16": _whole_numbers(8),
    "w8a8": _whole_numbers(8, inputs=_TOKEN), "fp8": _fp8(_FIXED_FP8), "fp8-dynamic": _fp8(_TOKEN_FP8, strategy="channel"),
    "fp8-block": _fp8(_GROUPS_FP8, strategy="block", block_structure=[128, 128]),
    "nvfp4": _fp4(_NVFP4, {**_NVFP4, "dynamic": "local"}), "nvfp4a16": _fp4(_NVFP4),
    "mxfp4": _fp4(_MXFP4, {**_MXFP4, "dynamic": True}), "mxfp4a16": _fp4(_MXFP4),
}  # fmt: skip
"""The schemes as they are usually published, by the precision's name."""

_NAMES = {_kind(scheme): name for name, scheme in _PRESETS.items()}
