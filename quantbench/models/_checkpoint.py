"""From a model's name to checked files: which, where, and what they contain, without loading any weight."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import struct
from pathlib import Path
from typing import Any

from quantbench.cache import file_sha256
from quantbench.errors import ModelError
from quantbench.job import Checkpoint
from quantbench.models import MODELS, ModuleRecipe, check_name, is_server, looks_like_path
from quantbench.models._gguf import gguf_parts
from quantbench.models._hub import CHECKPOINT_FILES, download

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def resolve(name: str, *, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint behind a model's name, downloaded from the hub if it must be.

    Raises UsageError for a name that can be no model, ModelError for files that cannot be used: no config.json, only
    pickled weights, a truncated safetensors or GGUF file, a hub that cannot be reached.
    """
    check_name(name)
    if is_server(name):
        content = hashlib.sha256(name.encode()).hexdigest()
        return Checkpoint(name=name, kind="server", path=Path(), revision="served", content_hash=content)
    if name in MODELS:
        recipe = MODELS[name].module
        return _module(name, recipe) if recipe else _folder(name, MODELS[name].folder(), "built-in", trust_remote_code)
    if looks_like_path(name):
        path = Path(name).expanduser().absolute()  # a link keeps its name, which says that it is one part of several
        return _gguf(name, path, "local") if path.is_file() else _folder(name, path.resolve(), "local", trust_remote_code)
    path, revision = download(name, trust_remote_code=trust_remote_code)
    return _gguf(name, path, revision) if path.is_file() else _folder(name, path, revision, trust_remote_code)


def checkpoint_dtype(folder: Path) -> str:
    """The dtype that most bytes of the checkpoint's tensors are stored in, for example ``bf16``."""
    totals: dict[str, int] = {}
    for path in weight_files(folder):
        for entry in safetensors_header(path).values():
            start, end = entry["data_offsets"]
            dtype = str(entry["dtype"]).lower()
            totals[dtype] = totals.get(dtype, 0) + end - start
    names = {"f32": "fp32", "f16": "fp16"}
    largest = max(totals, key=totals.__getitem__)
    return names.get(largest, largest)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load: the one file, or the shards that the index names, or all.

    Raises ModelError when a shard is missing or the index is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged: it has no weight_map; download or copy it again") from error
    for name in shards:
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks the shard {name} that its index names; download or copy it again")
    return [folder / name for name in shards]


def count_parameters(checkpoint: Checkpoint) -> int:
    """Parameters of the unquantized model: elements of all tensors, from the files' headers."""
    if checkpoint.kind == "gguf":
        from gguf import GGUFReader

        return sum(int(tensor.n_elements) for part in gguf_parts(checkpoint.path) for tensor in GGUFReader(part).tensors)
    headers = [safetensors_header(path) for path in weight_files(checkpoint.path)]
    return sum(math.prod(entry["shape"]) for header in headers for entry in header.values())


def safetensors_header(path: Path) -> dict[str, Any]:
    """Tensor entries of a safetensors file (dtype, shape, data_offsets); ModelError if the file is cut short."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise ModelError(f"{path} is truncated: its header is incomplete; download or copy it again")
        raw = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
    except ValueError as error:
        raise ModelError(f"{path} is no safetensors file: its header is not JSON; download or copy it again") from error
    try:
        header.pop("__metadata__", None)
        needed = 8 + length + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        sound = all(isinstance(entry["dtype"], str) and math.prod(entry["shape"]) >= 0 for entry in header.values())
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ModelError(f"{path} is no safetensors file: its header is damaged; download or copy it again") from error
    if not sound:
        raise ModelError(f"{path} is no safetensors file: its header is damaged; download or copy it again")
    if size < needed:
        raise ModelError(f"{path} is truncated: it has {size} of {needed} bytes; download or copy it again")
    return header


def _module(name: str, recipe: ModuleRecipe) -> Checkpoint:
    """A module has no files but the source that makes it."""
    source = Path(inspect.getfile(recipe.build))
    return Checkpoint(name=name, kind="module", path=source, revision="built-in", content_hash=file_sha256(source))


def _folder(name: str, folder: Path, revision: str, trust_remote_code: bool) -> Checkpoint:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json, so it is no checkpoint; give the folder that save_pretrained wrote")
    weights = weight_files(folder)
    if not weights:
        pickled = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
        why = f"only pickled weights ({pickled[0]}), which can run code when loaded" if pickled else "no weights"
        raise ModelError(f"{folder} has {why}; quantbench reads safetensors: save_pretrained writes them")
    for path in weights:
        safetensors_header(path)
    quantized = read_config(folder).get("quantization_config") or {}
    content = hashlib.sha256()
    patterns = [*CHECKPOINT_FILES[1:], "*.py"] if trust_remote_code else CHECKPOINT_FILES[1:]
    others = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    for path in (*weights, *sorted(others)):
        content.update(f"{path.name} {file_sha256(path)}\n".encode())
    return Checkpoint(
        name=name, kind="hf", path=folder, revision=revision,
        content_hash=content.hexdigest(), trust_remote_code=trust_remote_code,
        quantized=str(quantized.get("quant_method", "")),
    )  # fmt: skip


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json; ModelError when it is no JSON object."""
    try:
        body = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'} is not valid JSON ({error}); download or copy it again") from error
    if not isinstance(body, dict):
        raise ModelError(f"{folder / 'config.json'} holds no object; download or copy it again")
    return body


def _gguf(name: str, path: Path, revision: str) -> Checkpoint:
    hashes = [file_sha256(part) for part in gguf_parts(path)]
    content = hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return Checkpoint(name=name, kind="gguf", path=path, revision=revision, content_hash=content)
