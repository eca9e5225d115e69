"""Checkpoints of compressed-tensors as they were published, loaded through transformers' own integration.

transformers keeps the weights as they are stored until the first forward, which decompresses them; activations are quantized
and dequantized around dense multiplications. Of the formats here it has a kernel for FP8 alone, on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.protocols import Settings
from quantbench.models.config import read_config
from quantbench.models.safetensors import safetensors_header, weight_files
from quantbench.runtimes import says_out_of_memory
from quantbench.runtimes.transformers.compressed_schemes import METHOD, current, dtype_of, held, refusal, schemes
from quantbench.runtimes.transformers.model import TransformersModel, load_pretrained

_SCALE = ".weight_scale"
_KERNEL = "CompressedTensorsFP8Linear"
_TAKEN = ("fp8", "fp8-dynamic")
_FP8_CAPABILITY = (8, 9)
"""transformers 5.23, quantizer_compressed_tensors.py: the least compute capability for FP8 layers that stay FP8."""

_DECOMPRESSED = "weight_bytes is as loaded; the first forward decompresses, so running weights and peaks are a dense model's"
_ROWS = "the kernel scales activations row by row as they come, and leaves out scales that a checkpoint fixes"


def load_published(settings: Settings, device: str, precision: str) -> TransformersModel:
    """The checkpoint as it was published, by a kernel for its format where there is one, else decompressed and not timed.

    Raises UnsupportedError if it is of another precision or of a kind that is not measured, ModelError if it cannot be loaded.
    """
    import torch
    from transformers import AutoConfig

    checkpoint = settings.checkpoint
    body = read_config(checkpoint.path)
    quantization = body["quantization_config"]
    _require_readable(checkpoint.name, quantization, precision)
    groups, trust = schemes(quantization), checkpoint.trust_remote_code
    config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=trust)
    config.quantization_config = {**current(quantization), "use_optimized_inference": _may_have_kernel(precision, device)}
    dtype = dtype_of(body, groups)
    try:
        model = load_pretrained(settings, device, dtype=getattr(torch, dtype), config=config)
    except (RuntimeError, ValueError) as error:
        if says_out_of_memory(str(error)):
            raise
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise ModelError(f"transformers cannot load {checkpoint.name} ({first}); download or copy it again") from error
    found = _quantized_layers(model)
    _require_all(found, checkpoint.path)
    runs = set(found.values()) == {_KERNEL}
    stored = "+".join(sorted({each.format for each in groups}))
    return TransformersModel(
        model,
        kernel=_KERNEL if runs else f"{METHOD}-{stored}-decompressed",
        found={"quantization": json.dumps(quantization["config_groups"]), "note": _ROWS if runs else _DECOMPRESSED},
        untimed="" if runs else _untimed(precision, device, dtype),
    )


def _untimed(precision: str, device: str, dtype: str) -> str:
    """Why a decompressed model is not timed."""
    where = "the CPU" if device == "cpu" else "this GPU"
    return (
        f"transformers has no kernel for {precision} on {where}: it runs decompressed to {dtype}, and that speed is not the "
        "format's; to time it, serve it with vLLM and measure that with --method server"
    )


def _require_readable(name: str, quantization: Mapping[str, Any], precision: str) -> None:
    """Raise UnsupportedError unless the checkpoint is of ``precision``, ModelError if compressed-tensors cannot read that."""
    from compressed_tensors import QuantizationConfig

    if why := refusal(quantization):
        raise UnsupportedError(f"{name} cannot be measured as {METHOD}: {why}")
    (found,) = held(quantization)
    if found != precision:
        raise UnsupportedError(f"{name} is {METHOD}/{found} and {METHOD}/{precision} was asked for; ask for what it is")
    try:
        QuantizationConfig.model_validate(current(quantization))
    except (ValueError, NotImplementedError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[2] if len(lines) > 2 else lines[0]  # pydantic: how many errors, where the first is, and what it is
        raise ModelError(
            f"compressed-tensors cannot read the quantization_config of {name} ({said}); give one that a current version wrote"
        ) from error


def _may_have_kernel(precision: str, device: str) -> bool:
    """Whether transformers' FP8 layers can take a precision on a device; they cannot take scales of blocks."""
    if precision not in _TAKEN or device == "cpu":
        return False
    import torch

    return bool(torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY)


def _quantized_layers(model: Any) -> dict[str, str]:
    """The class of each layer that holds quantized weights, by its name."""
    return {name: type(module).__name__ for name, module in model.named_modules() if hasattr(module, _SCALE[1:])}


def _require_all(found: Collection[str], folder: Path) -> None:
    """Raise ModelError unless the layers that were found are those with stored scales: others would hold random weights."""
    headers = (safetensors_header(path) for path in weight_files(folder))
    stored = {name.removesuffix(_SCALE) for header in headers for name in header if name.endswith(_SCALE)}
    if odd := sorted(stored.symmetric_difference(found)):
        where = "the files" if odd[0] in stored else "its config.json"
        raise ModelError(
            f"transformers made {len(found)} quantized layers and the checkpoint holds {len(stored)} ({odd[0]} only by "
            f"{where}); its quantization_config is damaged, or it has fused experts, which are not measured here"
        )
