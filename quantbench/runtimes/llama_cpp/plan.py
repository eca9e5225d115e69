"""What GGUF files will take: sizes by llama.cpp's own dry run on a file without weights, and architectures of ready files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quantbench.core.cache import artifact, made_by
from quantbench.core.children import call
from quantbench.core.errors import ChildError, MissingDependency, ModelError, OutOfMemoryError, UnsupportedError
from quantbench.core.identity import identify
from quantbench.core.install import install_hint
from quantbench.core.units import format_bytes
from quantbench.models.architecture import Architecture, CacheLayer, Role, Tensor
from quantbench.models.footprint import Weights
from quantbench.models.gguf import GgufHeader, all_tensors, gguf_parts
from quantbench.runtimes.llama_cpp.facts import REQUIRES
from quantbench.runtimes.llama_cpp.files import UNQUANTIZED
from quantbench.runtimes.llama_cpp.tensors import TypedTensor

File = tuple[str, str, bool]
"""A precision, the file type of llama.cpp that it is, and whether it is made with an importance matrix."""

_CHILD = "quantbench.runtimes.llama_cpp.dry_run"
_RESULT = "result.json"
TIMEOUT_S = 60
_LEAN = {"GGML_NO_BACKTRACE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
"""A dry run needs no GPU and no threads, and no debugger's backtrace if it ends in an assertion."""

_DROPS_ROWS = "the converter drops embedding rows beyond the tokenizer's entries, whose number is not in a config.json"

_MAKERS = (
    "quantbench.runtimes.llama_cpp.plan", "quantbench.runtimes.llama_cpp.dry_run", "quantbench.runtimes.llama_cpp.tensors",
    "quantbench.models.gguf",
)  # fmt: skip
_MOST_BLOCKS = 10**4
_CONTEXT = 4096
"""Used in the header if a configuration gives none; no size depends on it."""


def forecast(architecture: Architecture, files: Sequence[File]) -> dict[str, Weights]:
    """What each of ``files`` will take, made from a checkpoint of this architecture."""
    return _weights(_request(architecture, files), files, _DROPS_ROWS if architecture.model_type.startswith("gemma3") else "")


def tensors_of(architecture: Architecture, precision: str, files: Sequence[File]) -> tuple[list[TypedTensor], dict[str, Any]]:
    """The tensors, with their types, of the one of ``files`` that is of this precision, and what fell back in it.

    Their bytes add up to what ``forecast`` says; UnsupportedError with its reason if it has none.
    """
    found = _asked({**_request(architecture, files), "types": True})  # of all files: llama.cpp is started once
    told = found.get("error") or found["files"][precision]
    if isinstance(told, str):
        raise UnsupportedError(told)
    named = zip(found["tensors"], told["types"], strict=True)
    tensors: list[TypedTensor] = [(name, tuple(shape), kind) for (name, shape), kind in named]
    return tensors, told["fallback"]


def forecast_from(path: Path, files: Sequence[File]) -> dict[str, Weights]:
    """What each of ``files`` will take, quantized from an unquantized GGUF file."""
    request = {
        "source": str(path), "content": _stamp(path), "tensors": header(path)["tensors"],
        "quantized": [list(each) for each in files], "versions": _versions(),
    }  # fmt: skip
    return _weights(request, files)


def types_in(path: Path, files: Sequence[File]) -> dict[str, dict[str, str]]:
    """The type that each tensor of a GGUF file, by its name, would have in each of ``files``; without those llama.cpp refuses.

    A quantized file will do, as a dry run reads no weights; what llama.cpp never quantizes keeps the type that it has. Raises
    ModelError if the file cannot be read, UnsupportedError if llama.cpp ended the dry run.
    """
    tensors = all_tensors(path)
    values = GgufHeader(gguf_parts(path)[0])
    architecture = values.get("general.architecture")
    request = {  # not the file, so that files of one model and mix are asked about once
        "metadata": {key: values.get(key) for key in values if key.startswith(f"{architecture}.")},
        "architecture": architecture, "tensors": [[tensor.name, list(tensor.shape), tensor.kind] for tensor in tensors],
        "types": True, "quantized": [list(each) for each in files], "versions": _versions(),
    }  # fmt: skip
    told = _asked(request, source=str(path)).get("files", {})
    names = [tensor.name for tensor in tensors]
    return {name: dict(zip(names, each["types"], strict=True)) for name, each in told.items() if not isinstance(each, str)}


def header(path: Path) -> Mapping[str, Any]:
    """What a ready GGUF file's header says: ``architecture``, ``metadata``, ``tensors``, ``bytes``, ``precision``, ``matrix``.

    ModelError if it is cut short, damaged or not a GGUF file.
    """
    if missing := [name for name in REQUIRES if find_spec(name) is None]:
        names = ", ".join(missing)
        raise MissingDependency(f"{path} cannot be read without {names}, not installed; {install_hint('gguf')}")
    return _asked({"describe": str(path), "content": _stamp(path), "versions": _versions()})


def gguf_architecture(path: Path) -> Architecture:
    """The architecture that a GGUF file's header describes, its tensors under their GGUF names.

    ModelError if the file is cut short, damaged, or says too little about its shapes.
    """
    found = header(path)

    def value(key: str, default: Any = None) -> Any:
        name = f"{found['architecture']}.{key}"
        number = found["metadata"].get(name, default)
        if number is None:
            raise ModelError(f"{path} has no {name} in its header, from which its sizes follow; give another file")
        return number

    try:
        return _described(path, found, value)
    except (ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise ModelError(f"{path} contradicts itself in its header ({error}); make or download it again") from error


def _described(path: Path, found: Mapping[str, Any], value: Callable[..., Any]) -> Architecture:
    blocks, width = int(value("block_count")), int(value("embedding_length"))
    if not 0 < blocks <= _MOST_BLOCKS:
        raise ValueError(f"{blocks} blocks")
    heads = _each(value("attention.head_count"), blocks)
    kept = _each(value("attention.head_count_kv", heads), blocks)
    usual = width // max(1, *heads)
    sides = [int(value(f"attention.{side}_length", usual)) for side in ("key", "value")]
    size = -(-sum(sides) // 2)  # a cache layer has one length for both
    tensors = tuple(Tensor(name, tuple(shape), _role(name, len(shape))) for name, shape, _ in found["tensors"])
    rows = {tensor.name: tensor.shape[0] for tensor in tensors}
    return Architecture(
        name=str(path), model_type=found["architecture"], config=found["metadata"], tensors=tensors,
        layers=tuple(CacheLayer(heads=each, head_dim=size) for each in kept),
        width=width, inner_width=_inner_width(tensors, _each(value("expert_used_count", 1), blocks)),
        attention_width=max(first + 2 * second for first, second in zip(heads, kept, strict=True)) * size,
        vocabulary=rows["token_embd.weight"] if "token_embd.weight" in rows else int(value("vocab_size")),
        context=int(value("context_length")), tied="output.weight" not in rows, gguf=path,
        note="" if all(kept) else "the state of layers without attention is not counted",
    )  # fmt: skip


def _inner_width(tensors: Sequence[Tensor], used: Sequence[int]) -> int:
    """Values that a position has inside a feed-forward layer at once: with a gate three of each, else two.

    The gate may be merged with its neighbour, which then has twice as many rows as there are columns on the way back.
    """
    shapes = {each.name: each.shape for each in tensors}
    widths = [0]
    for name, shape in shapes.items():
        if ".ffn_down" in name and len(shape) > 1:
            merged = shapes.get(name.replace("ffn_down", "ffn_up"), shape)[-2] == 2 * shape[-1]
            gated = merged or name.replace("ffn_down", "ffn_gate") in shapes
            widths.append(shape[-1] * (3 if gated else 2) * (max(used) if len(shape) > 2 else 1))
    return max(widths)


def _each(value: int | list[int], blocks: int) -> list[int]:
    """A figure of the header for each block; most files have one for all."""
    return [int(each) for each in value] if isinstance(value, list) else [int(value)] * blocks


def _role(name: str, dimensions: int) -> Role:
    if name == "token_embd.weight":
        return "embedding"
    if name == "output.weight":
        return "output"
    if dimensions > 2:
        return "experts"
    return "linear" if dimensions > 1 and name.startswith("blk.") and name.endswith(".weight") else "other"


def _request(architecture: Architecture, files: Sequence[File]) -> dict[str, Any]:
    written = [precision for precision, _, _ in files if precision in UNQUANTIZED]
    quantized = [list(each) for each in files if each[0] not in UNQUANTIZED]
    return {**_shapes(architecture), "written": written, "quantized": quantized, "versions": _versions()}


def _shapes(architecture: Architecture) -> dict[str, Any]:
    """What a dry run must know of an architecture."""
    rotary = architecture.config.get("rope_parameters") or architecture.config.get("rope_scaling") or {}
    first = architecture.layers[0]
    return {
        "model_type": architecture.model_type,
        "tensors": [[tensor.name, list(tensor.shape), tensor.role] for tensor in architecture.tensors],
        "kv_heads": [layer.heads for layer in architecture.layers],
        "heads": architecture.attention_width // first.head_dim - 2 * first.heads,
        "head_dim": first.head_dim,
        "width": architecture.width,
        "inner_width": architecture.inner_width,
        "vocabulary": architecture.vocabulary,
        "context": architecture.context or _CONTEXT,
        "window": max(layer.window or 0 for layer in architecture.layers) or _CONTEXT,
        "rotary": rotary.get("full_attention", rotary),
    }


def _weights(request: Mapping[str, Any], files: Sequence[File], note: str = "") -> dict[str, Weights]:
    build = f"llama.cpp of llama-cpp-python {version('llama_cpp_python')}"
    try:
        result = _asked(request)
    except (UnsupportedError, OutOfMemoryError) as error:
        result = {"error": str(error)}
    found = {}
    count = result.get("count", 0)
    for precision, _, matrix in files:
        told = result.get("error") or result["files"][precision]
        if isinstance(told, str):
            found[precision] = Weights(weight_bytes=None, dtype="fp16", note=told)
        else:
            how = f"{build}, with an importance matrix" if matrix else build
            said = "; ".join(filter(None, (how, _fell_back(told["fallback"], count), note)))
            found[precision] = Weights(weight_bytes=told["bytes"], dtype="fp16", note=said)
    return found


def _fell_back(found: Mapping[str, Any], count: int) -> str:
    """A note on what does not have the type that the precision's name promises."""
    if not found["tensors"]:
        return ""
    size, types = format_bytes(found["bytes"]), ", ".join(found["types"])
    return f"{found['tensors']} of {count} tensors, {size}, fall back to {types}: their rows do not fill blocks"


def _versions() -> dict[str, str]:
    return {"llama_cpp_python": version("llama_cpp_python"), "gguf": version("gguf"), "made_by": made_by(*_MAKERS)}


def _stamp(path: Path) -> list[list[int]]:
    """The identity of a file's parts on disk: which content they are, without reading it."""
    return [list(identify(part)) for part in gguf_parts(path)]


def _asked(request: Mapping[str, Any], **unkept: str) -> dict[str, Any]:
    """The child's answer to a request, from the cache if it was asked before, whatever it was told beside it.

    ModelError if a file cannot be described, UnsupportedError if llama.cpp ended the child or took too long.
    """

    def make(folder: Path) -> None:
        path = request.get("describe")
        task = f"{path} cannot be read: what reads it" if path else "llama.cpp's dry run"
        try:
            result = call(_CHILD, {**request, **unkept, "folder": str(folder)}, task, env=_LEAN, timeout_s=TIMEOUT_S)
        except ChildError as error:
            raise (ModelError if path else UnsupportedError)(str(error)) from error
        if path and "error" in result:
            raise ModelError(result["error"])
        (folder / _RESULT).write_text(json.dumps(result))

    found: dict[str, Any] = json.loads((artifact("gguf-plan", request, make) / _RESULT).read_text())
    return found
