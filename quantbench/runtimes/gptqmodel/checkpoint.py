"""Loads GPTQ and AWQ checkpoints, including those that auto-gptq and AutoAWQ wrote.

transformers reads only one layout. Older ones get a folder of links in the cache, with a config.json that it understands.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantbench.core.cache import artifact, made_by
from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.protocols import Settings
from quantbench.core.scenario import Precision, Variant
from quantbench.models.checkpoint import quantization_config, watched
from quantbench.models.config import read_config
from quantbench.models.safetensors import safetensors_header, weight_files, weight_index
from quantbench.runtimes.transformers.model import TransformersModel, load_pretrained

BELONGS = (".json", ".model", ".txt", ".jinja", ".py")
"""Suffixes of the files that belong to a checkpoint besides its weights."""

_INT4 = (
    Precision(name="int4-g128", bits=4, title="INT4, groups of 128"),
    Precision(name="int4-g64", bits=4, title="INT4, groups of 64", usual=False),
    Precision(name="int4-g32", bits=4, title="INT4, groups of 32", usual=False),
)
PRECISIONS: Mapping[str, tuple[Precision, ...]] = {
    "gptq": (
        Precision(name="int8", bits=8, title="INT8, groups of 128"),
        *_INT4,
        Precision(name="int3", bits=3, title="INT3, groups of 128", usual=False),
        Precision(name="int2", bits=2, title="INT2, groups of 128", usual=False),
    ),
    "awq": _INT4,
}
"""What gptqmodel makes, by method."""

_DEFAULT_GROUP = 128
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_NO_KERNEL = "No valid quant linear"


def grouping(precision: str) -> tuple[int, int]:
    """Bits per weight and weights per group of a precision, by its name."""
    name, _, group = precision.partition("-g")
    return int(name.removeprefix("int")), int(group or _DEFAULT_GROUP)


def held(method: str, quantization: Mapping[str, Any]) -> list[str]:
    """The precisions of a method that a checkpoint with this ``quantization_config`` has: the one with its bits and groups."""
    wanted = quantization.get("bits"), quantization.get("group_size")
    return [each.name for each in PRECISIONS[method] if grouping(each.name) == wanted]


def ready(checkpoint: Checkpoint, variant: Variant) -> Path:
    """The folder from which to load a checkpoint that was quantized elsewhere.

    Raises UnsupportedError if it was not quantized to ``variant``, ModelError if it cannot be loaded.
    """
    quantization = quantization_config(checkpoint.path, packed=True)
    _check_agrees(checkpoint.name, quantization, variant)
    folder = checkpoint.path
    config = read_config(folder)
    names = _weight_names(folder)
    if config.get("quantization_config") == quantization and all(path.name == name for name, path in names.items()):
        return folder

    def make(place: Path) -> None:
        rest = {path.name: path for path in folder.iterdir() if path.is_file() and path.suffix in BELONGS}
        for name, path in {**rest, **names}.items():
            if name != "config.json" and (name in names or path not in names.values()):
                (place / name).symlink_to(path.absolute())
        (place / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))

    asked = {"folder": str(folder.absolute()), "content": checkpoint.content_hash, "made_by": made_by(__name__)}
    return artifact("packed", asked, watched(checkpoint, make))


def load_packed(folder: Path, settings: Settings, device: str) -> TransformersModel:
    """A packed checkpoint through transformers, which lets gptqmodel choose the kernel for the device.

    Raises UnsupportedError if there is none for it, ModelError if layers would be left with random weights.
    """
    checkpoint = replace(settings.checkpoint, path=folder, random_weights=False)  # a dummy's are in its files
    try:
        with warnings.catch_warnings():
            # optimum looks at every attribute of the model, and gptqmodel makes a temporary folder that it does not need
            warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", r"Implicitly cleaning up <TemporaryDirectory .*gptqmodel", ResourceWarning)
            model = load_pretrained(replace(settings, checkpoint=checkpoint), device, dtype="float16")
    except ValueError as error:
        if _NO_KERNEL not in str(error):
            raise
        config = quantization_config(folder, packed=True)
        layout = config.get("checkpoint_format") or config.get("version") or config.get("format")
        raise UnsupportedError(
            f"gptqmodel has no kernel on {device} for {checkpoint.name}, {config['quant_method']} in format {layout}; "
            "give a checkpoint in format gptq or gemm"
        ) from error
    stored = sum(name.endswith(".qweight") for path in weight_files(folder) for name in safetensors_header(path))
    return TransformersModel(model, kernel=kernel_class(model, stored), state_bytes=_state_bytes)


def kernel_class(model: Any, stored: int) -> str:
    """The class names of the quantized layers, and how many layers stayed unquantized.

    Raises ModelError if there are not ``stored`` quantized layers: the others would hold random weights.
    """
    from torch.nn import Linear

    found = Counter(type(module).__name__ for module in model.modules() if hasattr(module, "qweight"))
    if found.total() != stored or not found:
        raise ModelError(
            f"transformers made {found.total()} quantized layers of the {stored} that the checkpoint holds; "
            "its quantization_config is damaged, or names a format that transformers does not know"
        )
    output = model.get_output_embeddings()
    left = sum(isinstance(module, Linear) and module is not output for module in model.modules())
    dtype = str(model.dtype).removeprefix("torch.")
    rest = f" ({left} of {left + found.total()} layers left in {dtype})" if left else ""
    return "+".join(f"gptqmodel-{name}" for name in sorted(found)) + rest


def _state_bytes(model: Any) -> int:
    """Bytes that kernels keep outside parameters and buffers: some repack weights on first use into plain attributes."""
    import torch

    counted = {tensor.data_ptr() for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
    kept = {
        value.data_ptr(): value.numel() * value.element_size()
        for module in model.modules()
        if hasattr(module, "qweight")
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and value.data_ptr() not in counted
    }
    return sum(kept.values())


def _check_agrees(name: str, quantization: Mapping[str, Any], variant: Variant) -> None:
    try:
        found = int(quantization["bits"]), int(quantization["group_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the configuration of {name} lacks bits or group_size; give a complete checkpoint") from error
    if found == grouping(variant.precision):
        return
    offered = {grouping(each.name): each.name for each in PRECISIONS[variant.method]}
    groups = f"in groups of {found[1]}" if found[1] > 0 else "with one group a row"
    mend = f"ask for {variant.method}/{offered[found]}" if found in offered else (
        f"{variant.method} offers {', '.join(offered.values())}, so give the unquantized checkpoint"
    )  # fmt: skip
    raise UnsupportedError(f"{name} is quantized to {found[0]} bits {groups} and {variant.name} was asked for; {mend}")


def _weight_names(folder: Path) -> dict[str, Path]:
    """The files of the weights, by the names under which transformers looks for them."""
    files = weight_files(folder)
    if len(files) == 1 and weight_index(folder) is None:
        return {_WEIGHTS: files[0]}
    index = weight_index(folder)
    if index is None:
        raise ModelError(f"{folder} has {len(files)} weight files ({files[0].name}, ...) and no index; keep the one you mean")
    return {_INDEX: index, **{path.name: path for path in files}}
