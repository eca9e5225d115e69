"""A model outside quantbench's own families, from its tensors' shapes in transformers' module or in safetensors headers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantbench.core.errors import ModelError
from quantbench.models.architecture import Architecture, Buffer, CacheLayer, Config, Tensor, quantized_note, require_decoder
from quantbench.models.architecture.parts import Heads, cache_layers, read_heads, rotary

_ATTENTION = re.compile(r"attn|attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What is known about a model outside the families; tied parameters are listed once.

    ``buffers`` is None if they are unknown: one module of rotary frequencies is then assumed. ``windows`` are those of each
    layer's cache, None if the configuration has to tell; ``held`` is the number of heads that each layer caches and their size,
    None if unknown. ``dimensions`` are the usual configuration keys with the values that are really in effect. ``source`` says
    in words where the shapes come from.
    """

    tensors: tuple[Tensor, ...]
    buffers: tuple[Buffer, ...] | None
    windows: tuple[int | None, ...] | None
    held: tuple[tuple[int, int], ...] | None
    tied: bool
    dimensions: Mapping[str, Any]
    source: str


def from_shapes(body: Mapping[str, Any], name: str, source: str, shapes: Shapes) -> Architecture:
    """The architecture of a configuration whose tensors are known; ``name`` and ``source`` as in ``architecture.read``.

    Weights follow from the shapes alone; if the shapes do not tell what the cache keeps, the configuration's heads do, and the
    note says so. Raises ModelError if it is not a text decoder or gives no heads.
    """
    config = Config({**body, **shapes.dimensions}, source)
    kind = config.text("model_type")
    require_decoder(config, kind)
    hidden, count = config.count("hidden_size"), config.count("num_hidden_layers")
    heads = read_heads(config, hidden)
    buffers = rotary(config, "model.rotary_emb", heads.size, partly=True) if shapes.buffers is None else shapes.buffers
    layers = _layers(config, heads, count, shapes)
    note = f"model type {kind!r}: shapes from {shapes.source}"
    assumed = "" if shapes.held else "its keys and values are counted by the heads in its config.json"
    return Architecture(
        name=name, model_type=kind, config=body, tensors=shapes.tensors, buffers=buffers, layers=layers, width=hidden,
        inner_width=_inner_width(shapes.tensors, hidden, config.count("num_experts_per_tok", default=1)),
        attention_width=max((heads.count + 2 * each.heads) * each.head_dim for each in layers),
        vocabulary=config.count("vocab_size"), context=config.optional("max_position_embeddings"), tied=shapes.tied,
        note="; ".join(filter(None, (note, assumed, quantized_note(config)))),
    )  # fmt: skip


def _layers(config: Config, heads: Heads, count: int, shapes: Shapes) -> tuple[CacheLayer, ...]:
    if shapes.windows is None:
        return cache_layers(config, heads, count, window=config.optional("sliding_window"))
    if len(shapes.windows) != count:
        raise ModelError(f"{config.source} has {count} layers, but only {len(shapes.windows)} keep keys and values")
    held = shapes.held or ((heads.kept, heads.size),) * count
    return tuple(_layer(heads, *each, window) for each, window in zip(held, shapes.windows, strict=True))


def _layer(heads: Heads, held: int, size: int, window: int | None) -> CacheLayer:
    """A layer that caches ``held`` heads: the configuration's, or copies of them, or others."""
    kept = held if held % heads.kept else heads.kept
    return CacheLayer(heads=kept, head_dim=size, window=window, copies=held // kept)


def _inner_width(tensors: Sequence[Tensor], hidden: int, used: int) -> int:
    """The most values that a position has inside a feed-forward layer at once: the outputs of its layers, and their product.

    With a gate, three times the inner width (gate, up and their product), else twice; for experts, of the ``used`` ones.
    """
    modules: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        owner = tensor.name.removesuffix(".weight").rpartition(".")[0]
        if tensor.role in ("linear", "conv1d", "experts") and not _ATTENTION.search(owner):
            modules.setdefault(owner, []).append(tensor)
    widths = [0]
    for module in modules.values():
        sides = [each.shape[::-1] if each.role == "conv1d" else each.shape[-2:] for each in module]
        for inner in (taken for given, taken in sides if given == hidden != taken):
            given = sum(outputs for outputs, taken in sides if taken == hidden and outputs in (inner, 2 * inner))
            widths.append((given + inner) * (used if module[0].role == "experts" else 1))
    return max(widths)
