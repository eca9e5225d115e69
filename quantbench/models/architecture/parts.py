"""What families share: heads, windows, rotary frequencies, and blocks of tensors with their usual names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quantbench.core.errors import ModelError
from quantbench.models.architecture import Architecture, Buffer, CacheLayer, Config, Role, Tensor

_FREQUENCY_BYTES = 4
"""Rotary frequencies are float32 whatever the model's dtype."""

_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, slots=True)
class Heads:
    """The number of query heads, of key and value heads, and the size of one head."""

    count: int
    kept: int
    size: int

    @property
    def width(self) -> int:
        """The size of queries, keys and values together."""
        return (self.count + 2 * self.kept) * self.size


def read_heads(config: Config, hidden: int, *, kept: int | None = None, size: int | None = None) -> Heads:
    """The heads of a ``hidden`` wide model.

    ``kept`` and ``size`` are transformers' defaults if the keys num_key_value_heads and head_dim are absent. Without a default,
    or if the keys are null, every head has its own key and value, and the hidden size is divided among the heads.
    """
    count = config.count("num_attention_heads")
    given = config.body.get("num_key_value_heads", kept)
    found_kept = config.count("num_key_value_heads", default=count if given is None else kept)
    if count % found_kept:
        raise ModelError(f"{config.source} has {count} attention heads and {found_kept} key-value heads; they must divide")
    absent_size = size if size and "head_dim" not in config.body else None
    if config.body.get("head_dim") is None and not absent_size:
        if hidden % count:
            raise ModelError(
                f"{config.source} has a hidden size of {hidden} and {count} attention heads; the second must divide the first"
            )
        absent_size = hidden // count
    return Heads(count, found_kept, config.count("head_dim", default=absent_size))


def cache_layers(
    config: Config, heads: Heads, count: int, *, window: int | None = None, kinds: Sequence[str] = ()
) -> tuple[CacheLayer, ...]:
    """What ``count`` layers cache: the last ``window`` positions in all of them, or by kind of layer if the model has kinds.

    ``kinds`` are the family's default if the configuration has no layer_types.
    """
    named = config.texts("layer_types") or kinds or (_SLIDING if window else _FULL,) * count
    if len(named) != count:
        raise ModelError(f"{config.source} names {len(named)} layer_types for {count} layers; it must name one for each")
    if _SLIDING in named and not window:
        raise ModelError(f"{config.source} has layers of sliding_attention but no sliding_window; add it")
    if strange := sorted(set(named) - {_SLIDING, _FULL}):
        raise ModelError(f"{config.source} has layers of type {strange[0]!r}, whose cache quantbench does not know")
    whole = CacheLayer(heads=heads.kept, head_dim=heads.size)
    part = CacheLayer(heads=heads.kept, head_dim=heads.size, window=window)
    return tuple(part if kind == _SLIDING else whole for kind in named)


def layer_kinds(sliding: Iterable[bool]) -> list[str]:
    """Names of the layer types: those whose cache slides, and those that keep everything."""
    return [_SLIDING if each else _FULL for each in sliding]


def rotary(config: Config, module: str, size: int, *, partly: bool = False) -> tuple[Buffer, ...]:
    """The frequencies that rotate ``size`` values of a head: those in use, and a copy of the original ones.

    The default rotation uses all values; other kinds, and every kind in a model that rotates ``partly``, use a given share.
    """
    scaling = config.table("rope_scaling") or config.table("rope_parameters")
    kind = scaling.text("rope_type") or scaling.text("type") or "default"
    share = 1.0
    if partly or kind != "default":
        usual = config.share("partial_rotary_factor", default=1.0)
        share = scaling.share("partial_rotary_factor", default=usual)
    rotated = int(size * share)
    if rotated == size and size % 2:
        raise ModelError(f"{config.source} has heads of {size} values, which cannot be rotated in pairs; they must be even")
    shape = (-(-rotated // 2),)  # one for each pair
    return tuple(Buffer(f"{module}.{name}", shape, _FREQUENCY_BYTES) for name in ("inv_freq", "original_inv_freq"))


def layer(name: str, outputs: int, inputs: int, *, bias: bool = False, role: Role = "linear") -> list[Tensor]:
    """A linear layer: its weight [outputs, inputs], and its bias."""
    weight = Tensor(f"{name}.weight", (outputs, inputs), role)
    return [weight, Tensor(f"{name}.bias", (outputs,))] if bias else [weight]


def norm(name: str, size: int) -> list[Tensor]:
    """A norm with a weight and no bias."""
    return [Tensor(f"{name}.weight", (size,))]


def attention(module: str, heads: Heads, hidden: int, *, qkv_bias: bool = False, out_bias: bool = False) -> list[Tensor]:
    """Separate query, key and value projections, and the output projection."""
    wide, narrow = heads.count * heads.size, heads.kept * heads.size
    return [
        *layer(f"{module}.q_proj", wide, hidden, bias=qkv_bias),
        *layer(f"{module}.k_proj", narrow, hidden, bias=qkv_bias),
        *layer(f"{module}.v_proj", narrow, hidden, bias=qkv_bias),
        *layer(f"{module}.o_proj", hidden, wide, bias=out_bias),
    ]


def gated(module: str, inner: int, hidden: int, *, bias: bool = False) -> list[Tensor]:
    """A gated feed-forward layer."""
    return [
        *layer(f"{module}.gate_proj", inner, hidden, bias=bias),
        *layer(f"{module}.up_proj", inner, hidden, bias=bias),
        *layer(f"{module}.down_proj", hidden, inner, bias=bias),
    ]


def decoder(
    config: Config,
    blocks: Iterable[Tensor],
    *,
    heads: Heads,
    layers: tuple[CacheLayer, ...],
    buffers: tuple[Buffer, ...],
    inner_width: int,
    tied: bool,
) -> Architecture:
    """The usual frame: model.embed_tokens, the blocks, a norm, and lm_head unless it is tied."""
    hidden, vocabulary = config.count("hidden_size"), config.count("vocab_size")
    tensors = [
        Tensor("model.embed_tokens.weight", (vocabulary, hidden), "embedding"),
        *blocks,
        *norm("model.norm", hidden),
    ]
    if not tied:
        tensors += layer("lm_head", vocabulary, hidden, role="output")
    return Architecture(
        name="", model_type=config.text("model_type"), config=config.body, tensors=tuple(tensors), buffers=buffers,
        layers=layers, width=hidden, inner_width=inner_width, attention_width=heads.width, vocabulary=vocabulary,
        context=config.optional("max_position_embeddings"), tied=tied,
    )  # fmt: skip
