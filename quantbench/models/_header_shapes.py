"""A model's shapes from the headers of the safetensors beside its config.json; roles follow from names and dimensions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantbench.core.errors import ModelError
from quantbench.models.architecture import Role, Tensor
from quantbench.models.architecture.shapes import Shapes
from quantbench.models.safetensors import safetensors_header, weight_files

_FLOATS = frozenset(("F64", "F32", "F16", "BF16"))
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_BUFFER = re.compile(r"\.(?:inv_freq|masked_bias|attn\.bias|attention\.bias|causal_mask)$")
"""Tensors that older versions of transformers saved although they are not parameters: frequencies and masks."""

_OUTPUTS = frozenset(("lm_head", "embed_out", "output"))
_POSITIONS = re.compile(r"pos|wpe|type")
_NORM = re.compile(r"norm|ln_|layernorm")
_ROUTER = re.compile(r"(?:\.gate|router(?:\.\w+)?)\.weight$")


def header_shapes(source: Path, body: Mapping[str, Any]) -> Shapes:
    """The tensors of the checkpoint that a config.json belongs to.

    ModelError if there are no weights beside it, or not those of the plain model: quantized weights, missing shards, a file of
    another model.
    """
    files = weight_files(source.parent) if source.name == "config.json" else []
    if not files:
        raise ModelError("no safetensors beside its config.json")
    if body.get("quantization_config"):
        raise ModelError("its safetensors are quantized")
    entries = {name: entry for path in files for name, entry in safetensors_header(path).items()}
    kept = {name: entry for name, entry in entries.items() if not _BUFFER.search(name)}
    if odd := [name for name, entry in kept.items() if entry["dtype"] not in _FLOATS]:
        raise ModelError(f"its safetensors hold {odd[0]} as {kept[odd[0]]['dtype']}")
    tensors = list(_named({name: tuple(entry["shape"]) for name, entry in kept.items()}, body))
    tied = _tied(tensors, body)
    return Shapes(
        tensors=tuple(each for each in tensors if not (tied and each.role == "output")),
        buffers=() if any(_POSITIONS.search(each.name) for each in tensors if not _BLOCK.search(each.name)) else None,
        windows=None,
        held=None,
        tied=tied,
        dimensions={},
        source="the headers of its safetensors",
    )


def _named(shapes: Mapping[str, tuple[int, ...]], body: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors with their roles; ModelError if they do not belong to a decoder of this configuration."""
    tensors = [Tensor(name, shape, _role(name, shape, body.get("vocab_size"))) for name, shape in shapes.items()]
    blocks = {found[1] for each in tensors if (found := _BLOCK.search(each.name))}
    if len(blocks) != body.get("num_hidden_layers"):
        raise ModelError(f"its safetensors hold {len(blocks)} blocks, but its config.json says {body.get('num_hidden_layers')}")
    embeddings = [each.name for each in tensors if each.role == "embedding"]
    if len(embeddings) != 1:
        raise ModelError(f"its safetensors hold {len(embeddings)} embeddings of its vocabulary")
    yield from tensors


def _role(name: str, shape: tuple[int, ...], vocabulary: object) -> Role:
    """A tensor's role; experts stored separately have the same role as fused ones, as transformers fuses them on load."""
    if len(shape) not in (2, 3) or _NORM.search(name.rpartition(".")[0].rpartition(".")[2]):
        return "other"
    if ".experts." in name:
        return "experts"
    if len(shape) == 3 or _ROUTER.search(name):
        return "other"
    if _BLOCK.search(name):
        return "linear" if name.endswith(".weight") else "other"
    if shape[0] == vocabulary:
        return "output" if name.split(".")[-2] in _OUTPUTS else "embedding"
    return "other" if _POSITIONS.search(name) else "linear"


def _tied(tensors: list[Tensor], body: Mapping[str, Any]) -> bool:
    """Whether the output layer is the embedding: the configuration says so, or the file has no output layer."""
    has_output = any(each.role == "output" for each in tensors)
    tied = body.get("tie_word_embeddings", not has_output)
    if not (tied or has_output):
        raise ModelError("its safetensors lack the output layer that its config.json says it has")
    return bool(tied)
