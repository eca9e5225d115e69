"""transformers on torch: what runs most methods. Everything that is loaded as a torch module is opened here."""

from __future__ import annotations

import math
from fractions import Fraction

from quantbench.core.job import Checkpoint
from quantbench.models.architecture import Architecture
from quantbench.models.chat import folder_template
from quantbench.models.footprint import ELEMENT_BYTES
from quantbench.models.tokenizer import Tokenizer
from quantbench.runtimes import Runtime

_FLOAT32 = 4


def kv_cache_bytes(architecture: Architecture, *, context: int, batch: int, dtype: str) -> int:
    """Bytes of the keys and values of ``batch`` sequences of ``context`` positions.

    2 x batch x sum over layers of positions x heads x head_dim x element bytes. No more than its window is kept of a layer that
    has one, and heads as often as the model's own code repeats them.
    """
    values = sum(
        layer.heads * layer.head_dim * min(context, layer.window or context) * layer.copies for layer in architecture.layers
    )
    return math.ceil(2 * batch * values * ELEMENT_BYTES[dtype])


def activation_bytes(architecture: Architecture, *, context: int, batch: int, dtype: str) -> int:
    """Bytes of the tensors that live at once while prompts of ``context`` tokens are prefilled: an estimate.

    torch holds every position at once: of the hidden size the embeddings, a layer's input, the residual and its norm, as
    transformers keeps them referenced; the rotary tables; and the wider of queries, keys, values and the attention's output, or
    the inside of a feed-forward layer, or the norm's two float32 copies; of the logits the last position only; and keys and
    values beyond a layer's window, which go once the prompt is through. An allocator may take more.
    """
    width = architecture.width
    wide = max(architecture.attention_width + width, architecture.inner_width)
    size = ELEMENT_BYTES[dtype]
    tables = 2 * max(layer.head_dim for layer in architecture.layers)
    inside = max(wide * size, Fraction(2 * _FLOAT32 * width))
    beyond = sum(
        layer.heads * layer.head_dim * layer.copies * max(0, context - (layer.window or context))
        for layer in architecture.layers
    )
    each = batch * (4 * width * size + inside) + tables * size
    return math.ceil(context * each + batch * (architecture.vocabulary + 2 * beyond) * size)


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    from quantbench.runtimes.transformers.tokenizer import FolderTokenizer

    return FolderTokenizer(checkpoint)


TRANSFORMERS = Runtime(
    name="transformers",
    about="transformers on torch, in this process",
    packages=(
        "torch", "transformers", "accelerate", "bitsandbytes", "gptqmodel", "optimum", "torchao", "compressed-tensors", "peft",
    ),
    kv_cache_bytes=kv_cache_bytes,
    activation_bytes=activation_bytes,
    out_of_memory=("out_of_memory", "unable to allocate", "status_alloc_failed", "memoryallocation"),
    opens="hf",
    tokenizer=_tokenizer,
    read_template=folder_template,
)
