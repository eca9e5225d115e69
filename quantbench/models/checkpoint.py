"""From a model's name to its checked files: which they are, where, and what they contain, without loading any weights."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantbench.core.cache import file_sha256, hashed
from quantbench.core.errors import ModelError
from quantbench.core.identity import identify
from quantbench.core.job import Checkpoint
from quantbench.core.outside import expanded, whole_number
from quantbench.core.text import quoted
from quantbench.models import MODELS, ModuleRecipe, check_name, is_dummy, is_server, looks_like_path
from quantbench.models.config import CONFIG, read_config
from quantbench.models.contents import ADAPTER, require_own
from quantbench.models.dummy import make_dummy, read_shapes
from quantbench.models.gguf import all_tensors, gguf_parts
from quantbench.models.hub import CHECKPOINT_FILES, download
from quantbench.models.safetensors import safetensors_header, stored_integers, weight_files

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_OLDER_CONFIGS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files in which auto-gptq and AutoAWQ described their quantization before config.json did."""

_OLDER_KEYS = {"w_bit": "bits", "q_group_size": "group_size"}
_PACKED = ".qweight"
_MOST_BITS = 32
_BESIDE_WEIGHTS = (
    "_weight_scale", "_weight_zero_point",
    "weight_scale", "weight_zero_point", "weight_global_scale", "input_scale", "input_zero_point", "input_global_scale",
)  # fmt: skip
"""What checkpoints of torchao, and of compressed-tensors, store beside the values of a weight."""

_COMPRESSED = ("weight_packed", "weight_shape")
"""A weight in compressed-tensors' words, or in bytes of two values each, and the shape that it had, kept beside words only."""

_CHANGED = (
    "{} changed after it was hashed, so the row would describe another model than was opened; measure again when nothing "
    "writes there any more, or measure a copy"
)
_BESIDE_PACKED = ("qzeros", "scales", "g_idx")


def resolve(name: str, *, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint behind a model's name, downloaded from the hub or made from a configuration if necessary.

    Raises UsageError for a name that cannot be a model, ModelError for files that cannot be used: no config.json, only
    pickled weights, a truncated safetensors or GGUF file, an unreachable hub.
    """
    check_name(name)
    if is_server(name):
        content = hashlib.sha256(name.encode()).hexdigest()
        return Checkpoint(name=name, kind="server", path=Path(), revision="served", content_hash=content)
    if is_dummy(name):
        return make_dummy(name)
    if name in MODELS:
        recipe = MODELS[name].module
        return _module(name, recipe) if recipe else _folder(name, MODELS[name].folder(), "built-in", trust_remote_code)
    if looks_like_path(name):
        if name.endswith(".json"):
            raise ModelError(f"{name} has no weights; give the folder of the checkpoint, or dummy:{name} for random ones")
        path = expanded(name).absolute()  # not resolved: a link's own name says which part of a split file it is
        return _gguf(name, path, "local") if path.is_file() else _folder(name, path.resolve(), "local", trust_remote_code)
    path, revision = download(name, trust_remote_code=trust_remote_code)
    return _gguf(name, path, revision) if path.is_file() else _folder(name, path, revision, trust_remote_code)


def require_unchanged(checkpoint: Checkpoint) -> None:
    """Raise ModelError unless the checkpoint's files are still those that were hashed; reads only files with a new identity.

    New permissions or links to the same content are not a change; a file added to the folder is.
    """
    for each in checkpoint.files:
        path = Path(each.path)
        try:
            same = identify(path) == each.identity or file_sha256(path) == each.sha256
        except OSError:
            same = False
        if not same:
            raise ModelError(_CHANGED.format(path))
    if checkpoint.files and checkpoint.kind == "hf":
        folder = Path(checkpoint.files[0].path).parent
        now = _belonging(folder, weight_files(folder), trust_remote_code=checkpoint.trust_remote_code)
        if added := {str(path) for path in now} - {each.path for each in checkpoint.files}:
            raise ModelError(_CHANGED.format(min(added)))


def _belonging(folder: Path, weights: Sequence[Path], *, trust_remote_code: bool) -> list[Path]:
    """The files of a checkpoint, weights first; code only if it is trusted."""
    patterns = [*CHECKPOINT_FILES[1:], "*.py"] if trust_remote_code else CHECKPOINT_FILES[1:]
    return [*weights, *sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})]


def watched(checkpoint: Checkpoint, make: Callable[[Path], None]) -> Callable[[Path], None]:
    """``make``, but its artifact is discarded if the checkpoint changes meanwhile."""

    def careful(folder: Path) -> None:
        require_unchanged(checkpoint)
        make(folder)
        require_unchanged(checkpoint)

    return careful


def checkpoint_dtype(folder: Path) -> str:
    """The dtype of most bytes in the checkpoint's tensors, for example ``bf16``."""
    totals: dict[str, int] = {}
    for path in weight_files(folder):
        for entry in safetensors_header(path).values():
            start, end = entry["data_offsets"]
            dtype = str(entry["dtype"]).lower()
            totals[dtype] = totals.get(dtype, 0) + end - start
    names = {"f32": "fp32", "f16": "fp16"}
    if not totals:
        raise ModelError(f"{folder} has safetensors without a tensor; download or copy them again")
    largest = max(totals, key=totals.__getitem__)
    return names.get(largest, largest)


def count_parameters(checkpoint: Checkpoint) -> int:
    """The number of parameters of the unquantized model, from the files' headers; packed tensors count as if unpacked.

    A dummy's parameters are counted from their shapes.
    """
    if checkpoint.random_weights:
        return sum(math.prod(shape) for shape in read_shapes(checkpoint.path).values())
    if checkpoint.kind == "gguf":
        return sum(math.prod(tensor.shape) for tensor in all_tensors(checkpoint.path))
    headers = [(path, safetensors_header(path)) for path in weight_files(checkpoint.path)]
    tensors = {name: entry for _, header in headers for name, entry in header.items()}
    packed = {name.removesuffix(_PACKED) for name in tensors if name.endswith(_PACKED)}
    bits = _packed_bits(checkpoint.path) if packed else 0
    total = sum(_compressed_elements(path, header) for path, header in headers)
    for name, entry in tensors.items():
        module, _, last = name.rpartition(".")
        elements = 0 if last in (*_BESIDE_WEIGHTS, *_COMPRESSED) else math.prod(entry["shape"])
        if name.endswith(_PACKED):
            total += elements * _word_bits(checkpoint.path, entry["dtype"]) // bits
        elif module not in packed or last not in _BESIDE_PACKED:
            total += elements
    return total


def _packed_bits(folder: Path) -> int:
    """The bits of a value in packed weights, as their configuration says."""
    bits = quantization_config(folder, packed=True).get("bits")
    if type(bits) is not int or not 1 <= bits <= _MOST_BITS:
        raise ModelError(f"{folder} says that {quoted(bits)} bits are packed; give an intact quantization config")
    return bits


def _word_bits(folder: Path, dtype: str) -> int:
    """The bits of a word of packed weights, which the dtype's name gives, as in I32."""
    if found := whole_number(dtype[1:]):
        return found
    raise ModelError(f"{folder} packs weights into {quoted(dtype)}, which is no type of integers; give an intact checkpoint")


def _compressed_elements(path: Path, header: Mapping[str, Any]) -> int:
    """The weights that compressed-tensors packed in a file, before it packed them."""
    packed, shape = (f".{name}" for name in _COMPRESSED)
    in_words = (math.prod(stored_integers(path, entry)) for name, entry in header.items() if name.endswith(shape))
    in_bytes = (each["shape"] for name, each in header.items() if name.endswith(packed) and each["dtype"] == "U8")
    return sum(in_words) + 2 * sum(int(math.prod(shape)) for shape in in_bytes)


def quantization_config(folder: Path, *, packed: bool) -> dict[str, Any]:
    """How the checkpoint was quantized, with its ``quant_method`` and current keys; empty if it was not quantized.

    It comes from config.json, or from the file that older tools wrote beside it. ``packed`` says whether there are packed
    weights; ModelError if there are and nothing says how to read them.
    """
    found = read_config(folder).get("quantization_config")
    if isinstance(found, dict) and found:
        bitsandbytes = any(found.get(f"load_in_{bits}bit") for bits in (4, 8))
        found = {"quant_method": "bitsandbytes" if bitsandbytes else "unknown", **found}
    elif packed:
        older = [name for name in _OLDER_CONFIGS if (folder / name).is_file()]
        if not older:
            raise ModelError(
                f"{folder} holds packed weights, but nothing says how they were quantized; "
                "add the quantize_config.json or quant_config.json that belongs to it"
            )
        found = {"quant_method": _OLDER_CONFIGS[older[0]], **read_config(folder / older[0])}
    return {_OLDER_KEYS.get(key, key): value for key, value in (found or {}).items()}


def quantized_as(folder: Path) -> dict[str, Any]:
    """The same from the configurations alone, without looking at weights: enough for planning."""
    return quantization_config(folder, packed=any((folder / name).is_file() for name in _OLDER_CONFIGS))


def _module(name: str, recipe: ModuleRecipe) -> Checkpoint:
    """A module's only file is the source that makes it."""
    source = Path(inspect.getfile(recipe.build))
    found = hashed(source)
    return Checkpoint(
        name=name, kind="module", path=source, revision="built-in", content_hash=found.sha256, files=(found,)
    )  # fmt: skip


def _folder(name: str, folder: Path, revision: str, trust_remote_code: bool) -> Checkpoint:
    if (folder / ADAPTER).is_file() and not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} is an adapter, a change to a model; merge it into its base and give the result")
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} has no config.json, so it is not a checkpoint; give the folder that save_pretrained wrote")
    weights = weight_files(folder)
    if not weights:
        pickled = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
        why = f"only pickled weights ({pickled[0]}), which can run code when loaded" if pickled else "no weights"
        raise ModelError(f"{folder} has {why}; quantbench reads safetensors, which save_pretrained writes")
    require_own(folder, weights)
    names = [name for path in weights for name in safetensors_header(path)]
    packed = any(name.endswith(_PACKED) for name in names)
    content = hashlib.sha256()
    files = [hashed(path) for path in _belonging(folder, weights, trust_remote_code=trust_remote_code)]
    for file in files:
        content.update(f"{Path(file.path).name} {file.sha256}\n".encode())
    return Checkpoint(
        name=name, kind="hf", path=folder, revision=revision,
        content_hash=content.hexdigest(), trust_remote_code=trust_remote_code, files=tuple(files),
        quantized=str(quantization_config(folder, packed=packed).get("quant_method", "")),
    )  # fmt: skip


def _gguf(name: str, path: Path, revision: str) -> Checkpoint:
    files = tuple(hashed(part) for part in gguf_parts(path))
    hashes = [each.sha256 for each in files]
    content = hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return Checkpoint(name=name, kind="gguf", path=path, revision=revision, content_hash=content, files=files)
