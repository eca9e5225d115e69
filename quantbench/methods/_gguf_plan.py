"""What GGUF files will take: sizes by llama.cpp's own dry run on a file without weights, and architectures of ready files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantbench.architecture import Architecture, CacheLayer, Role, Tensor
from quantbench.cache import artifact
from quantbench.errors import ModelError, UnsupportedError
from quantbench.footprint import Weights
from quantbench.methods._gguf_dry_run import REQUEST, RESULT, tensor_bytes
from quantbench.methods._gguf_files import UNQUANTIZED
from quantbench.models._gguf import gguf_parts

File = tuple[str, str, bool]
"""A precision, the file type of llama.cpp that it is, and whether it is made with an importance matrix."""

_CHILD = "quantbench.methods._gguf_dry_run"
_TIMEOUT_S = 60
_LEAN = {"GGML_NO_BACKTRACE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
"""A dry run needs no GPU and no threads, and where it ends in an assertion no debugger to say so."""

_DROPS_ROWS = "the converter leaves out rows of the embedding beyond the tokenizer's entries, which a config.json does not tell"

_FORMAT = 1
_CONTEXT = 4096
"""What the header says where a configuration does not; no size depends on it."""


def forecast(architecture: Architecture, files: Sequence[File]) -> dict[str, Weights]:
    """What each of ``files`` will take, made of a checkpoint of this architecture."""
    written = [precision for precision, _, _ in files if precision in UNQUANTIZED]
    quantized = [list(each) for each in files if each[0] not in UNQUANTIZED]
    request = {**_shapes(architecture), "written": written, "quantized": quantized, "versions": _versions()}
    return _weights(request, files, _DROPS_ROWS if architecture.model_type.startswith("gemma3") else "")


def forecast_from(path: Path, files: Sequence[File]) -> dict[str, Weights]:
    """What each of ``files`` will take, quantized from an unquantized GGUF file."""
    request = {
        "source": str(path), "content": _stamp(path), "tensors": header(path)["tensors"],
        "quantized": [list(each) for each in files], "versions": _versions(),
    }  # fmt: skip
    return _weights(request, files)


def ready_bytes(path: Path) -> int:
    """Bytes of all tensors of a ready GGUF file."""
    return sum(tensor_bytes(shape, kind) for _, shape, kind in header(path)["tensors"])


def header(path: Path) -> Mapping[str, Any]:
    """What a ready GGUF file's header says: ``architecture``, ``metadata``, ``tensors``, ``precision``, ``matrix``.

    ModelError where it is cut short, damaged or no GGUF file.
    """
    gguf_parts(path)
    return _asked({"describe": str(path), "content": _stamp(path), "versions": _versions()})


def gguf_architecture(path: Path) -> Architecture:
    """The architecture that a GGUF file's header describes, its tensors under their GGUF names.

    ModelError where the file is cut short, damaged, or says too little of its shapes.
    """
    found = header(path)
    metadata: Mapping[str, Any] = found["metadata"]
    own = str(found["architecture"])

    def value(key: str, default: Any = None) -> Any:
        number = metadata.get(f"{own}.{key}", default)
        if number is None:
            raise ModelError(f"{path} has no {own}.{key} in its header, which its KV cache follows from; give another file")
        return number

    blocks, width = int(value("block_count")), int(value("embedding_length"))
    heads = _each(value("attention.head_count"), blocks)
    kept = _each(value("attention.head_count_kv", heads), blocks)
    size = int(value("attention.key_length", width // max(1, *heads)))
    tensors = tuple(Tensor(name, tuple(shape), _role(name, len(shape))) for name, shape, _ in found["tensors"])
    rows = {tensor.name: tensor.shape[0] for tensor in tensors}
    return Architecture(
        name=str(path), model_type=own, config=metadata, tensors=tensors,
        layers=tuple(CacheLayer(heads=each, head_dim=size) for each in kept),
        width=width, inner_width=_inner_width(tensors, _each(value("expert_used_count", 1), blocks)),
        attention_width=max(first + 2 * second for first, second in zip(heads, kept, strict=True)) * size,
        vocabulary=rows["token_embd.weight"] if "token_embd.weight" in rows else int(value("vocab_size")),
        context=int(value("context_length")), tied="output.weight" not in rows, gguf=path,
        note="" if all(kept) else "what layers without attention keep is not counted",
    )  # fmt: skip


def _inner_width(tensors: Sequence[Tensor], used: Sequence[int]) -> int:
    """Values that a position has inside a feed-forward layer: those of its gate beside its own, of experts those in use."""
    up = [each.shape for each in tensors if ".ffn_up" in each.name and len(each.shape) > 1]
    widest = max((shape[-2] * (max(used) if len(shape) > 2 else 1) for shape in up), default=0)
    gated = any(".ffn_gate." in each.name or ".ffn_gate_exps." in each.name for each in tensors)
    return widest * (2 if gated else 1)


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


def _shapes(architecture: Architecture) -> dict[str, Any]:
    """What a dry run must know of an architecture."""
    body = {**architecture.config, **(architecture.config.get("text_config") or {})}
    rotary = body.get("rope_parameters") or body.get("rope_scaling") or {}
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
    except UnsupportedError as error:
        result = {"error": str(error)}
    found = {}
    for precision, _, matrix in files:
        size = result.get("error") or result["sizes"][precision]
        if isinstance(size, str):
            found[precision] = Weights(weight_bytes=None, dtype="fp16", runtime="llama.cpp", note=size)
        else:
            how = f"{build}, with an importance matrix" if matrix else build
            said = "; ".join(filter(None, (how, note)))
            found[precision] = Weights(weight_bytes=size, dtype="fp16", runtime="llama.cpp", note=said)
    return found


def _versions() -> dict[str, str]:
    return {"llama_cpp_python": version("llama_cpp_python"), "gguf": version("gguf"), "format": str(_FORMAT)}


def _stamp(path: Path) -> list[list[int]]:
    """Sizes and times of a file's parts: which content it is, without reading it."""
    return [[part.stat().st_size, part.stat().st_mtime_ns] for part in gguf_parts(path)]


def _asked(request: Mapping[str, Any]) -> dict[str, Any]:
    """The child's answer to a request, from the cache where it was asked before.

    ModelError where a file cannot be described, UnsupportedError where llama.cpp ended the child or took too long.
    """

    def make(folder: Path) -> None:
        (folder / REQUEST).write_text(json.dumps(request))
        command = [sys.executable, "-m", _CHILD, str(folder)]
        try:
            done = subprocess.run(
                command, capture_output=True, check=False, timeout=_TIMEOUT_S, env={**os.environ, **_LEAN}
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise UnsupportedError(f"llama.cpp's dry run took more than {_TIMEOUT_S} s and was stopped") from error
        if done.returncode or not (folder / RESULT).is_file():
            raise UnsupportedError(f"llama.cpp's dry run {_death(done)}")
        result = json.loads((folder / RESULT).read_text())
        if "error" in result and "describe" in request:
            raise ModelError(result["error"])

    found: dict[str, Any] = json.loads((artifact("gguf-plan", request, make) / RESULT).read_text())
    return found


def _death(done: subprocess.CompletedProcess[bytes]) -> str:
    last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it gave no reason"])[-1]
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
    return f"ended with {how} ({last})"
