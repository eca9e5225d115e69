"""GGUF files: llama.cpp's own converter and quantizer, each result made once and kept in the cache."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantbench.core.cache import artifact, made_by
from quantbench.core.children import run
from quantbench.core.errors import ChildError, ModelError, UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.protocols import Artifact
from quantbench.models.checkpoint import watched
from quantbench.models.config import read_config
from quantbench.models.contents import without_code
from quantbench.models.gguf import GgufHeader, all_tensors
from quantbench.runtimes.llama_cpp.converter import CHECKOUT_VARIABLE, converter
from quantbench.runtimes.llama_cpp.facts import fallen_back
from quantbench.runtimes.llama_cpp.model import library
from quantbench.runtimes.llama_cpp.tensors import fallback

MODEL_FILE = "model.gguf"
UNQUANTIZED = ("f16", "bf16", "f32")
"""Precisions that llama.cpp's converter writes itself, and whose files can still be quantized."""

NO_FALLBACK = "no tensor type fallback is defined"
"""What llama.cpp says about a type that its table of fallbacks lacks."""

_NOTHING_FELL_BACK: Mapping[str, Any] = {"tensors": 0, "bytes": 0}
_LARGEST_BLOCK = 256
"""Weights in the largest blocks of any type, ggml's QK_K."""

_MATRIX_NOTE = "quantize.imatrix.entries_count"
"""Where llama.cpp notes in a file's header that it was quantized with an importance matrix."""

_UNTRUSTED = (".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def f16_file(checkpoint: Checkpoint) -> Path:
    """The checkpoint as an F16 GGUF file; a ready GGUF file as it is."""
    return checkpoint.path if checkpoint.kind == "gguf" else _converted(checkpoint, "f16")


def _converted(checkpoint: Checkpoint, outtype: str) -> Path:
    """The checkpoint as a GGUF file of 16 or 32 bits, made by llama.cpp's ``convert_hf_to_gguf.py`` on first use."""
    asked = {"content": checkpoint.content_hash, "outtype": outtype, **gguf_maker()}

    def make(folder: Path) -> None:
        source = _without_code(checkpoint, folder / "source")
        command = [sys.executable, str(converter()), str(source), "--outtype", outtype, "--outfile", str(folder / MODEL_FILE)]
        try:
            run(command, f"llama.cpp's conversion of {checkpoint.path}")
        except ChildError as error:
            raise ModelError(f"llama.cpp's converter cannot convert {checkpoint.path} to GGUF: {error.reason}") from error
        if source != checkpoint.path:
            shutil.rmtree(source)
        if not (folder / MODEL_FILE).is_file():
            raise ModelError(f"llama.cpp's converter wrote no file of {checkpoint.path}; give another checkpoint")

    return artifact("gguf", asked, watched(checkpoint, make)) / MODEL_FILE


def _without_code(checkpoint: Checkpoint, view: Path) -> Path:
    """A view of the checkpoint without Python files and pickles, which the converter would trust; itself if it is trusted.

    Its configurations do not name code either: the converter would import what they name from any folder, or from the hub.
    """
    if checkpoint.trust_remote_code:
        return checkpoint.path
    view.mkdir()
    for path in checkpoint.path.iterdir():
        if not path.is_file() or path.suffix in _UNTRUSTED:
            continue
        if (kept := _names_no_code(path)) is None:
            (view / path.name).symlink_to(path.resolve())
        else:
            (view / path.name).write_text(json.dumps(kept))
    return view


def _names_no_code(path: Path) -> Mapping[str, Any] | None:
    """A configuration without the code that it names; None where it names none, or is no configuration."""
    try:
        found = read_config(path) if path.suffix == ".json" else {}
    except ModelError:  # transformers cannot read it either
        return None
    kept = without_code(found)
    return None if kept == found else kept


def quantized_file(checkpoint: Checkpoint, precision: str, matrix: Path | None = None) -> Artifact:
    """The checkpoint as a GGUF file of llama.cpp's type ``precision``, quantized by llama.cpp itself on first use.

    ``matrix`` is an importance matrix to weigh the errors with. What is not quantized comes from the converter directly.

    Where rows do not fill blocks of a type llama.cpp takes another, which the artifact's facts count. Raises UnsupportedError
    where llama.cpp knows none for such rows or the type is for experts only, ModelError when llama.cpp refuses otherwise.
    """
    if checkpoint.kind == "hf" and precision in UNQUANTIZED:
        path = _converted(checkpoint, precision)
        return Artifact(path=path, file_bytes=path.stat().st_size, quantize_s=None, facts=fallback_facts())
    source = f16_file(checkpoint)
    asked = {"content": checkpoint.content_hash, "precision": precision, **gguf_maker()}
    if matrix:
        asked["imatrix"] = matrix.parent.name

    def make(folder: Path) -> None:
        require_experts(source, (len(tensor.shape) for tensor in all_tensors(source)), precision)
        seconds = _quantize(source, folder / MODEL_FILE, precision, matrix)
        fell = fallen_back("\n".join(library().quantbench_fallbacks))
        sizes = [(each.name, each.bytes, each.kind) for each in GgufHeader(folder / MODEL_FILE).tensors] if fell else []
        (folder / "quantize.json").write_text(json.dumps({"quantize_s": seconds, "fallback": fallback(sizes, fell)}))

    folder = artifact("gguf", asked, watched(checkpoint, make))
    path = folder / MODEL_FILE
    made = json.loads((folder / "quantize.json").read_text())
    facts = fallback_facts(made.get("fallback", _NOTHING_FELL_BACK))  # older files lack it: such shapes were refused
    return Artifact(path=path, file_bytes=path.stat().st_size, quantize_s=made["quantize_s"], facts=facts)


def _quantize(source: Path, target: Path, precision: str, matrix: Path | None) -> float:
    """Seconds of llama.cpp's own quantization."""
    import numpy as np

    lib = library()
    params = lib.llama_model_quantize_default_params()
    params.ftype = file_type(precision)
    entries: dict[str, Any] = {}
    if matrix:
        with np.load(matrix, allow_pickle=False) as file:  # the library gets bare pointers: the arrays must outlive the call
            entries = {name: np.ascontiguousarray(file[name], dtype=np.float32) for name in file.files}
        params.imatrix = matrix_array(lib, entries)
        params.kv_overrides = _matrix_note(lib, len(entries))
    lib.quantbench_error = ""
    lib.quantbench_fallbacks.clear()
    started = time.perf_counter()
    if lib.llama_model_quantize(str(source).encode(), str(target).encode(), params):
        reason = lib.quantbench_error or "it gave no reason"
        if NO_FALLBACK in reason:
            raise UnsupportedError(refused_type(precision, reason))
        raise ModelError(f"llama.cpp refused to quantize {source} to {precision} ({reason}); choose another precision")
    return time.perf_counter() - started


def refused_type(precision: str, reason: str) -> str:
    """The message for a type that llama.cpp cannot make for a model's shapes, with its own words."""
    words = reason.rpartition("failed to quantize: ")[2]
    return f"llama.cpp cannot make {precision} at this model's row sizes ({words}); use another precision"


def fallback_facts(found: Mapping[str, Any] = _NOTHING_FELL_BACK) -> dict[str, str]:
    """What fell back, as facts of a row; nothing unless it is told."""
    return {"fallback_tensors": str(found["tensors"]), "fallback_bytes": str(found["bytes"])}


def matrix_array(lib: Any, entries: Mapping[str, Any]) -> Any:
    """llama.cpp's array of importance entries, ended by an empty one."""
    array = (lib.llama_model_imatrix_data * (len(entries) + 1))()
    for cell, (name, values) in zip(array, entries.items(), strict=False):
        cell.name = name.encode()
        cell.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        cell.size = values.size
    return array


def _matrix_note(lib: Any, count: int) -> Any:
    """llama.cpp's array of header overrides, ended by an empty one: how many entries the importance matrix had."""
    array = (lib.llama_model_kv_override * 2)()
    array[0].key = _MATRIX_NOTE.encode()
    array[0].tag = lib.LLAMA_KV_OVERRIDE_TYPE_INT
    array[0].value.val_i64 = count
    return array


def file_type(precision: str) -> int:
    """llama.cpp's number for a precision such as ``q4_k_m``, from its own enumeration."""
    lib = library()
    prefix = "LLAMA_FTYPE_ALL_" if precision == "f32" else "LLAMA_FTYPE_MOSTLY_"
    return int(getattr(lib, prefix + precision.upper()))


def file_precision(path: Path) -> str:
    """The precision that a GGUF file's header names, for example ``q4_k_m``."""
    return GgufHeader(path).precision


def has_matrix(path: Path) -> bool:
    """Whether a GGUF file's header says that it was quantized with an importance matrix."""
    return notes_matrix(GgufHeader(path))


def notes_matrix(header: GgufHeader) -> bool:
    """Whether a header, read already, says so."""
    return header.get(_MATRIX_NOTE) is not None


def tensor_bytes(path: Path) -> int:
    """Bytes of all tensors in a GGUF file and its further parts; ModelError if one is cut short or damaged."""
    return sum(tensor.bytes for tensor in all_tensors(path))


def fills_blocks(path: Path) -> bool:
    """Whether nothing in a ready file can have fallen back: its rows fill the largest blocks, or nothing is quantized."""
    plain = {kind.upper() for kind in UNQUANTIZED}
    return all(
        len(tensor.shape) < 2 or tensor.shape[-1] % _LARGEST_BLOCK == 0 or tensor.kind in plain for tensor in all_tensors(path)
    )


def gguf_maker() -> dict[str, str]:
    """What makes GGUF files here: the runtime's version, the checkout if one was named, and our own source."""
    return {
        "llama_cpp_python": version("llama_cpp_python"), "checkout": os.environ.get(CHECKOUT_VARIABLE, ""),
        "made_by": made_by("quantbench.runtimes.llama_cpp.files"),
    }  # fmt: skip


def require_experts(source: object, dimensions: Iterable[int], precision: str) -> None:
    """Raise UnsupportedError if a file type for experts is asked of a model whose tensors have no third dimension."""
    if precision == "mxfp4_moe" and max(dimensions, default=0) < 3:
        raise UnsupportedError(f"mxfp4_moe is for experts and {source} has none, so it would be Q8_0; ask for gguf/q8_0")
