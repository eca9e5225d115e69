"""llama.cpp through llama-cpp-python: GGUF files, made, described and run."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

from quantbench.core.job import Checkpoint
from quantbench.models.architecture import Architecture
from quantbench.models.chat import TEMPLATE_KEY
from quantbench.models.footprint import ELEMENT_BYTES
from quantbench.models.gguf import GgufHeader, gguf_parts
from quantbench.models.tokenizer import Tokenizer
from quantbench.runtimes import Runtime

_CELL_PADDING = 256
"""llama.cpp rounds the cache up to a multiple of this many positions."""

_BATCH = 512
"""Positions that are processed at once, llama.cpp's default."""

_FLOAT32 = 4


def kv_cache_bytes(architecture: Architecture, *, context: int, batch: int, dtype: str) -> int:
    """Bytes of the keys and values: as it is opened here, all positions are kept, in multiples of 256."""
    padded = -(-context // _CELL_PADDING) * _CELL_PADDING
    values = sum(layer.heads * layer.head_dim * padded for layer in architecture.layers)
    return math.ceil(2 * batch * values * ELEMENT_BYTES[dtype])


def activation_bytes(architecture: Architecture, *, context: int, batch: int, dtype: str) -> int:  # noqa: ARG001 - float32
    """Bytes of the tensors that live at once: an estimate.

    512 positions are worked on at a time, in float32, with the logits of all of them and a mask over the contexts of all
    sequences.
    """
    width = architecture.width
    wide = max(architecture.attention_width + width, architecture.inner_width)
    values = max(2 * width + wide, architecture.vocabulary + width)
    return _FLOAT32 * min(context, _BATCH) * (values + batch * context)


def _architecture(path: Path) -> Architecture:
    from quantbench.runtimes.llama_cpp.plan import gguf_architecture

    return gguf_architecture(path)


def _precision(path: Path) -> str:
    return GgufHeader(gguf_parts(path)[0]).precision if find_spec("gguf") else ""


def _template(path: Path) -> str:
    return GgufHeader(gguf_parts(path)[0]).get(TEMPLATE_KEY) or "" if find_spec("gguf") else ""


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    from quantbench.runtimes.llama_cpp.tokenizer import GgufTokenizer

    return GgufTokenizer(checkpoint)


LLAMA_CPP = Runtime(
    name="llama.cpp",
    about="llama.cpp through llama-cpp-python, in this process",
    packages=("llama-cpp-python", "gguf"),
    kv_cache_bytes=kv_cache_bytes,
    activation_bytes=activation_bytes,
    kv_dtype="fp16",
    fills_context=True,
    offloads=True,
    out_of_memory=("failed to allocate", "insufficient memory"),
    opens="gguf",
    suffix=".gguf",
    read_architecture=_architecture,
    read_precision=_precision,
    files=gguf_parts,
    tokenizer=_tokenizer,
    read_template=_template,
    torch_free=True,
)
