"""Predicted bytes: weights, KV cache and activations of an architecture, by arithmetic on its shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from quantbench.models.architecture import Architecture

Runtime = Literal["torch", "llama.cpp"]

ELEMENT_BYTES: Mapping[str, Fraction] = {
    "fp32": Fraction(4), "fp16": Fraction(2), "bf16": Fraction(2), "fp8": Fraction(1),
    "q8_0": Fraction(34, 32), "q4_0": Fraction(18, 32),
}  # fmt: skip
"""Bytes of one value by dtype; the last two are llama.cpp's blocks of 32 values with a 16-bit scale."""

_CELL_PADDING = 256
"""llama.cpp keeps its cache in multiples of so many positions."""

_LLAMA_CPP_BATCH = 512
"""Positions that llama.cpp works on at once, its default."""

_FLOAT32 = 4
_LONGEST = 2**20
"""Where a configuration says nothing of how long a context may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What a variant's weights will take.

    ``weight_bytes`` is what the column of that name will say when the variant is loaded, None where it cannot be told, with the
    reason in ``note``; ``file_bytes`` the quantized file's or checkpoint's size where it is known. ``dtype`` is that of the KV
    cache and the activations, ``runtime`` what runs it.
    """

    weight_bytes: int | None
    file_bytes: int | None = None
    dtype: str = "bf16"
    runtime: Runtime = "torch"
    note: str = ""


def dense_bytes(architecture: Architecture, dtype: str) -> int:
    """Bytes of all parameters in one dtype, and of the buffers in theirs."""
    size = ELEMENT_BYTES[dtype]
    return math.ceil(architecture.parameters * size) + architecture.buffer_bytes_in(math.ceil(size))


def kv_cache_bytes(architecture: Architecture, *, context: int, batch: int, dtype: str, runtime: Runtime) -> int:
    """Bytes of the keys and values of ``batch`` sequences of ``context`` positions.

    2 x batch x sum over layers of positions x heads x head_dim x element bytes. torch keeps no more than its window of a layer
    that has one, and heads as often as the model's own code repeats them; llama.cpp, as it is opened here, keeps all positions,
    in multiples of 256.
    """
    padded = -(-context // _CELL_PADDING) * _CELL_PADDING
    values = sum(
        layer.heads * layer.head_dim * (min(context, layer.window or context) * layer.copies if runtime == "torch" else padded)
        for layer in architecture.layers
    )
    return math.ceil(2 * batch * values * ELEMENT_BYTES[dtype])


def activation_bytes(architecture: Architecture, *, context: int, batch: int, dtype: str, runtime: Runtime) -> int:
    """Bytes of the tensors that live at once while prompts of ``context`` tokens are prefilled: an estimate.

    torch holds every position at once: of the hidden size the embeddings, a layer's input, the residual and its norm, as
    transformers keeps them referenced; the rotary tables; and the wider of queries, keys, values and the attention's output, or
    the inside of a feed-forward layer, or the norm's two float32 copies; of the logits the last position only; and keys and
    values beyond a layer's window, which go once the prompt is through. An allocator may take more. llama.cpp works on 512
    positions at a time, in float32, with the logits of all of them and a mask over the contexts of all sequences.
    """
    width, inner = architecture.width, architecture.inner_width
    wide = max(architecture.attention_width + width, inner)
    if runtime == "llama.cpp":
        positions = min(context, _LLAMA_CPP_BATCH)
        values = max(2 * width + wide, architecture.vocabulary + width)
        return _FLOAT32 * positions * (values + batch * context)
    size = ELEMENT_BYTES[dtype]
    tables = 2 * max(layer.head_dim for layer in architecture.layers)
    inside = max(wide * size, Fraction(2 * _FLOAT32 * width))
    beyond = sum(
        layer.heads * layer.head_dim * layer.copies * max(0, context - (layer.window or context))
        for layer in architecture.layers
    )
    each = batch * (4 * width * size + inside) + tables * size
    return math.ceil(context * each + batch * (architecture.vocabulary + 2 * beyond) * size)


def largest_context(architecture: Architecture, weights: Weights, budget: int, *, batch: int, dtype: str) -> int | None:
    """The most positions for which weights, KV cache and activations stay within ``budget`` bytes.

    Never more than the model was made for; 0 where not even one fits; None where the weights are not known.
    """
    loaded = weights.weight_bytes
    if loaded is None:
        return None

    def fits(context: int) -> bool:
        cache = kv_cache_bytes(architecture, context=context, batch=batch, dtype=dtype, runtime=weights.runtime)
        busy = activation_bytes(architecture, context=context, batch=batch, dtype=weights.dtype, runtime=weights.runtime)
        return loaded + cache + busy <= budget

    low, high = 0, architecture.context or _LONGEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
