"""Facts that llama.cpp only logs or implies: where it put the weights, and how much of them a decode step reads."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from quantbench.core.protocols import N_GPU_LAYERS
from quantbench.models.gguf import gguf_parts

REQUIRES = ("llama_cpp", "gguf")
"""Modules needed to make and run GGUF files."""

BUFFER_LINE = b"model buffer size"
"""Marks the lines of llama.cpp's log, while it loads, that say how much went into which kind of memory."""

FALLBACK_LINE = b"not divisible by"
"""Marks the lines of its log, while it quantizes, about a tensor whose rows do not fill blocks of its type."""

_FALLBACK = re.compile(r"warning: (\S+) +- ncols [^\n]*not divisible by")
_BUFFER = re.compile(r"(\S+) model buffer size =\s*([0-9.]+) MiB")
_HOST = re.compile(r"CPU|AMX|BLAS|.*_Host$")
_CUDA = re.compile(r"CUDA(\d+)$")
_EMBEDDING = b"token_embd.weight"
_OUTPUT = b"output.weight"
_INPUT = (_EMBEDDING, b"position_embd.weight", b"token_types.weight", b"per_layer_token_embd.weight")
"""Tables that llama.cpp always keeps on the host; a step reads only one row of them."""

_SLACK_BYTES = 2**20
_CELL_BYTES = 2
"""Keys and values are kept as float16."""


class _HeaderOnly(ctypes.Structure):
    """ggml's ``gguf_init_params``."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


def fallen_back(log: str) -> set[str]:
    """Names of the tensors that llama.cpp says it did not give its recipe's type, as their rows do not fill its blocks."""
    return set(_FALLBACK.findall(log))


def found_device(lines: Iterable[str], path: Path) -> str:
    """Where the weights are, from the log of loading ``path``: ``cpu``, ``cuda:0``, or places joined by ``+``.

    llama.cpp always keeps the input embeddings on the host; more than those there means layers there.
    """
    sizes: dict[str, float] = {}
    for line in lines:
        for name, mebibytes in _BUFFER.findall(line):
            cuda = _CUDA.match(name)
            place = f"cuda:{cuda[1]}" if cuda else "cpu" if _HOST.match(name) else name.lower()
            sizes[place] = sizes.get(place, 0.0) + float(mebibytes) * 2**20
    places = {place for place in sizes if place != "cpu"}
    if not places or sizes.get("cpu", 0.0) > sum(tensor_bytes(path).get(name, 0) for name in _INPUT) + _SLACK_BYTES:
        places.add("cpu")
    return "+".join(sorted(places))


def placed(lib: Any, model: Any, gpu_layers: int) -> dict[str, str]:
    """How many layers went to a GPU where so many were asked for; the output layer counts as one."""
    count = int(_meta(lib, model, f"{_meta(lib, model, 'general.architecture')}.block_count") or gpu_layers) + 1
    return {N_GPU_LAYERS: str(min(gpu_layers, count))}


def step_counts(lib: Any, model: Any, path: Path) -> dict[str, int | None]:
    """What a decode step reads; unknown for experts, of which it reads some, and for caches that do not keep everything."""
    arch = _meta(lib, model, "general.architecture")
    tensors = tensor_bytes(path)
    embedding = tensors.get(_EMBEDDING)
    counts: dict[str, int | None] = {}
    if embedding is not None and int(_meta(lib, model, f"{arch}.expert_count") or 0) <= 1:
        rows = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        unread = embedding - embedding // rows if _OUTPUT in tensors else 0
        counts["step_bytes"] = int(lib.llama_model_size(model)) - unread
    partial = (
        lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model) or lib.llama_model_n_swa(model)
        or _meta(lib, model, f"{arch}.attention.kv_lora_rank")
        or _meta(lib, model, f"{arch}.attention.head_count_kv").startswith("[")
    )  # fmt: skip
    if not partial:
        plain = lib.llama_model_n_embd(model) // lib.llama_model_n_head(model)
        widths = [int(_meta(lib, model, f"{arch}.attention.{kind}_length") or plain) for kind in ("key", "value")]
        heads = lib.llama_model_n_layer(model) * lib.llama_model_n_head_kv(model)
        counts["cache_position_bytes"] = heads * sum(widths) * _CELL_BYTES
    return counts


@cache
def tensor_bytes(path: Path) -> dict[bytes, int]:
    """Bytes of the input embeddings and of the output layer, if the file and its parts have them.

    ggml itself reads the header: the gguf package makes Python objects of a whole vocabulary, which would count as memory.
    """
    import llama_cpp

    ggml = llama_cpp.llama_cpp._lib  # noqa: SLF001 - llama-cpp-python wraps no gguf_ function
    ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, _HeaderOnly]
    ggml.gguf_init_from_file.restype = ctypes.c_void_p
    ggml.gguf_find_tensor.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    ggml.gguf_find_tensor.restype = ctypes.c_int64
    ggml.gguf_get_tensor_size.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    ggml.gguf_get_tensor_size.restype = ctypes.c_size_t
    ggml.gguf_free.argtypes = [ctypes.c_void_p]
    found: dict[bytes, int] = {}
    for part in gguf_parts(path):
        header = ggml.gguf_init_from_file(str(part).encode(), _HeaderOnly(no_alloc=True, context=None))
        if not header:
            continue
        for name in (*_INPUT, _OUTPUT):
            index = ggml.gguf_find_tensor(header, name)
            if index >= 0:
                found[name] = int(ggml.gguf_get_tensor_size(header, index))
        ggml.gguf_free(header)
    return found


def _meta(lib: Any, model: Any, key: str) -> str:
    """A value of the file's header as text; empty if it has none of that name."""
    text = ctypes.create_string_buffer(256)
    length = lib.llama_model_meta_val_str(model, key.encode(), text, len(text))
    return text.value.decode("utf-8", "replace") if length > 0 else ""
