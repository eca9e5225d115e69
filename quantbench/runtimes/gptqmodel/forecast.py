"""The size of an architecture's GPTQ and AWQ checkpoints, by arithmetic on its shapes, as gptqmodel writes and loads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from quantbench.models.architecture import Architecture, Tensor
from quantbench.models.footprint import Weights
from quantbench.models.safetensors import Stored, file_bytes, stored_bytes
from quantbench.runtimes.gptqmodel.checkpoint import PRECISIONS, grouping

FAMILIES: Mapping[str, frozenset[str]] = {
    "gptq": frozenset(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "opt")),
    "awq": frozenset(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "opt")),
}
"""Model types that gptqmodel 7.6 was seen to quantize and transformers 5.23 to load again. Others failed in one or the other:
fused experts (mixtral), Conv1D (gpt2), subclasses of Linear (falcon), names that have changed (gpt_neox, phi3), rotary
positions that differ between layers (gemma3_text, in AWQ's search only)."""

BLOCKS = (".layers.", ".h.", ".blocks.")
"""The name of every weight inside the blocks contains one of these."""

_AWQ_OUTPUTS = 64
"""gptqmodel searches a layer's clipping in steps of this many outputs, and asserts that they divide its outputs."""

_WORD_BITS = 32
_SHIFT_TABLE_BYTES = {2: 64, 3: 144, 4: 32, 8: 16}
"""By bits: the table that each GPTQ layer makes for itself on load, of the places of values in a word."""

SHARD_BYTES = 4 * 2**30
_NOTES = {
    "gptq": "GPTQ v1 with an int32 g_idx, as loaded on a CPU; embeddings and the output layer stay in 16 bits",
    "awq": "AWQ gemm, as loaded on a CPU; embeddings and the output layer stay in 16 bits",
}


def forecast(method: str, architecture: Architecture, precisions: Sequence[str]) -> dict[str, Weights]:
    """The bytes of each precision as loaded on a CPU, and of the files as gptqmodel writes them there."""
    found = {}
    for each in precisions:
        why = refusal(method, each, architecture)
        found[each] = Weights(weight_bytes=None, dtype="fp16", note=why) if why else _weights(method, each, architecture)
    return found


def refusal(method: str, precision: str, architecture: Architecture) -> str:
    """Why the checkpoint of an architecture cannot be predicted; empty if it can."""
    layers = {tensor.name: tensor.shape for tensor in architecture.tensors if _packed(tensor)}
    return _unknown(method, architecture) or misfit(method, precision, layers)


def misfit(method: str, precision: str, layers: Mapping[str, Sequence[int]]) -> str:
    """Why gptqmodel cannot make ``precision`` of layers of these shapes [outputs, inputs]; empty if it can."""
    fits = [
        each.name for each in PRECISIONS[method] if all(row % grouping(each.name)[1] == 0 for _, row in layers.values())
    ]
    _, group_size = grouping(precision)
    for name, (_, row) in layers.items():
        if row % group_size:
            mend = f"ask for {' or '.join(fits)}" if fits else f"no precision of {method} divides all rows"
            return f"groups of {group_size} do not divide the rows of {row} of {name}; {mend}"
    for name, (outputs, _) in layers.items():
        if method == "awq" and outputs % _AWQ_OUTPUTS:
            return f"gptqmodel makes AWQ of layers with a multiple of {_AWQ_OUTPUTS} outputs and {name} has {outputs}; use gptq"
    return ""


def packed_tensors(method: str, precision: str, architecture: Architecture) -> Iterator[Stored]:
    """The tensors of the checkpoint in gptqmodel's order: first what stays as it is, then the layers."""
    pack = partial(_gptq if method == "gptq" else _awq, *grouping(precision))
    layers = {tensor.name.removesuffix("weight"): tensor for tensor in architecture.tensors if _packed(tensor)}
    biased = {tensor.name.removesuffix("bias") for tensor in architecture.tensors if tensor.name.endswith(".bias")}
    for tensor in architecture.tensors:
        if tensor.name.removesuffix("weight").removesuffix("bias") not in layers:
            yield tensor.name, "BF16", tensor.shape
    for stem, layer in layers.items():
        yield from ((stem + name, dtype, shape) for name, dtype, shape in pack(layer, biased=stem in biased))


def shards(tensors: Sequence[Stored]) -> Iterator[list[Stored]]:
    """The files of a checkpoint, each filled in order up to 4 GiB; a larger tensor gets a file of its own."""
    shard: list[Stored] = []
    filled = 0
    for stored in tensors:
        size = stored_bytes(stored)
        if shard and filled + size > SHARD_BYTES:
            yield shard
            shard, filled = [], 0
        shard.append(stored)
        filled += size
    yield shard


def _packed(tensor: Tensor) -> bool:
    """Whether it is the weight of a layer that is quantized: one inside the blocks."""
    return tensor.role == "linear" and any(part in tensor.name for part in BLOCKS)


def _unknown(method: str, architecture: Architecture) -> str:
    """Why nothing can be predicted for an architecture; empty if it can."""
    if architecture.model_type not in FAMILIES[method]:
        return (
            f"gptqmodel is not known to write loadable {method.upper()} of model type {architecture.model_type!r}; "
            "use another method"
        )
    outside = [tensor.name for tensor in architecture.tensors if tensor.role == "linear" and not _packed(tensor)]
    if method == "awq" and outside:
        return f"transformers takes {outside[0]} for quantized and gptqmodel leaves it as it is; use gptq"
    return ""


def _weights(method: str, precision: str, architecture: Architecture) -> Weights:
    tensors = list(packed_tensors(method, precision, architecture))
    bits, _ = grouping(precision)
    tables = _SHIFT_TABLE_BYTES[bits] * sum(name.endswith(".g_idx") for name, *_ in tensors)
    return Weights(
        weight_bytes=sum(map(stored_bytes, tensors)) + tables + architecture.buffer_bytes,
        file_bytes=sum(map(file_bytes, shards(tensors))),
        dtype="fp16",
        note=_NOTES[method],
    )


def _gptq(bits: int, group_size: int, layer: Tensor, *, biased: bool) -> Iterator[Stored]:
    outputs, row = layer.shape
    groups = row // group_size
    yield "g_idx", "I32", (row,)
    yield "scales", "F16", (groups, outputs)
    if biased:
        yield "bias", "F16", (outputs,)
    yield "qweight", "I32", (row * bits // _WORD_BITS, outputs)
    yield "qzeros", "I32", (groups, -(-outputs * bits // _WORD_BITS))


def _awq(bits: int, group_size: int, layer: Tensor, *, biased: bool) -> Iterator[Stored]:
    outputs, row = layer.shape
    groups, words = row // group_size, outputs * bits // _WORD_BITS
    yield "scales", "BF16", (groups, outputs)
    if biased:
        yield "bias", "BF16", (outputs,)
    yield "qweight", "I32", (row, words)
    yield "qzeros", "I32", (groups, words)
