"""How many layers of a GGUF model fit on the GPUs, where not all of them do.

llama.cpp counts a model's blocks, and its output layer as one more. Of N layers on the GPU the output layer is the first, and
then come the blocks from the last one on; the input embedding stays on the host (``load_tensors`` in llama-model.cpp).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from quantbench.core.boards import open_boards
from quantbench.core.errors import UnsupportedError
from quantbench.core.scenario import AUTO, Conditions
from quantbench.core.units import format_bytes
from quantbench.models.gguf import tensor_bytes
from quantbench.runtimes.llama_cpp import activation_bytes, kv_cache_bytes
from quantbench.runtimes.llama_cpp.plan import gguf_architecture, header

MARGIN_BYTES = 2**30
"""Left free on each GPU: the default of llama.cpp's own ``--fit-target``. CUDA's context and workspaces are in it."""

_KV_DTYPE = "fp16"
_BLOCK = re.compile(r"blk\.(\d+)\.")
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_TABLES = (_EMBEDDING, "position_embd.weight", "token_types.weight", "token_embd_norm.weight", "per_layer_token_embd.weight")
"""What stays on the host."""


def gpu_layers(path: Path, conditions: Conditions, *, context: int, batch: int = 1) -> int | None:
    """How many layers of the file go to the GPU; None where nothing was asked for, which means all.

    UnsupportedError where as many as fit were asked for, and not one does or nobody says how much memory is free.
    """
    asked = conditions.n_gpu_layers
    if asked != AUTO:
        return int(asked) if asked else None
    boards = open_boards(conditions.device)
    try:
        free = boards if isinstance(boards, str) else boards.free_bytes()
    except OSError as error:
        free = str(error)
    if isinstance(free, str):
        raise UnsupportedError(f"how many layers fit on {conditions.device} is not known ({free}); give their number")
    if layers := layers_within(path, free, context=context, batch=batch):
        return layers
    raise UnsupportedError(
        f"not one layer of {path.name} fits on {conditions.device}, which has {format_bytes(sum(free))} free; "
        "free memory there, or measure it with --device cpu"
    )


def layers_within(path: Path, free: Sequence[int], *, context: int, batch: int) -> int:
    """The most layers of a file that GPUs with so many bytes free hold, with ``batch`` sequences of ``context`` tokens.

    On each GPU room is left for the tensors that live at once, for a copy of the largest weight that stays on the host (which
    a GPU multiplies long prompts with), and for ``MARGIN_BYTES``; of several, a layer's room for what does not divide evenly.
    """
    architecture = gguf_architecture(path)
    weights = {name: tensor_bytes(shape, kind) for name, shape, kind in header(path)["tensors"]}
    sizes, output = Counter[int](), 0
    for name, size in weights.items():
        if block := _BLOCK.match(name):
            sizes[int(block[1])] += size
        elif name not in _TABLES:
            output += size
    if _OUTPUT not in weights:  # tied: the GPU gets a copy
        output += weights[_EMBEDDING]
    for number, layer in enumerate(architecture.layers):
        alone = replace(architecture, layers=(layer,))
        sizes[number] += kv_cache_bytes(alone, context=context, batch=batch, dtype=_KV_DTYPE)
    moved = [output, *(sizes[number] for number in reversed(range(len(architecture.layers))))]
    busy = activation_bytes(architecture, context=context, batch=batch, dtype=_KV_DTYPE) + max(weights.values())
    uneven = max(moved) if len(free) > 1 else 0
    room = sum(free) - len(free) * (MARGIN_BYTES + busy + uneven)
    return sum(taken <= room for taken in accumulate(moved))
