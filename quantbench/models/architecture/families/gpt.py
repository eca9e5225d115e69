"""What came of GPT-2 and stood beside it: layer norms, biases, one plain feed-forward layer, as many keys as heads."""

from __future__ import annotations

from collections.abc import Sequence

from quantbench.core.errors import ModelError
from quantbench.models.architecture import Architecture, Buffer, Config, Tensor, family
from quantbench.models.architecture.parts import Heads, cache_layers, layer, norm, per_head, rotary

_POSITIONS_BEFORE = 2
"""Rows of OPT's table of positions that no position uses."""


@family("gpt2")
def gpt2(config: Config) -> Architecture:
    """GPT-2, whose linear layers keep their weights transposed."""
    if config.flag("add_cross_attention", default=False):
        raise ModelError(f"{config.source} has add_cross_attention, which a decoder of its own has no use for; leave it out")
    sizes = _sizes(config, "n_embd", "n_layer", "n_head")
    hidden, count, _ = sizes
    inner = config.count("n_inner", default=4 * hidden)
    tensors = _embeddings(config, hidden, positions=config.count("n_positions", "max_position_embeddings"))
    for number in range(count):
        start = f"transformer.h.{number}."
        tensors += [
            *norm(f"{start}ln_1", hidden, bias=True),
            *layer(f"{start}attn.c_attn", 3 * hidden, hidden, bias=True, role="conv1d"),
            *layer(f"{start}attn.c_proj", hidden, hidden, bias=True, role="conv1d"),
            *norm(f"{start}ln_2", hidden, bias=True),
            *layer(f"{start}mlp.c_fc", inner, hidden, bias=True, role="conv1d"),
            *layer(f"{start}mlp.c_proj", hidden, inner, bias=True, role="conv1d"),
        ]
    tensors += norm("transformer.ln_f", hidden, bias=True)
    return _model(config, tensors, sizes, inner)


@family("gpt_neo")
def gpt_neo(config: Config) -> Architecture:
    """GPT-Neo, of which every layer has a mask of its own."""
    sizes = _sizes(config, "hidden_size", "num_layers", "num_heads")
    hidden, count, _ = sizes
    inner = config.count("intermediate_size", default=4 * hidden)
    positions = config.count("max_position_embeddings")
    tensors = _embeddings(config, hidden, positions=positions)
    for number in range(count):
        start = f"transformer.h.{number}."
        tensors += norm(f"{start}ln_1", hidden, bias=True)
        for name in ("k", "v", "q"):
            tensors += layer(f"{start}attn.attention.{name}_proj", hidden, hidden)
        tensors += [
            *layer(f"{start}attn.attention.out_proj", hidden, hidden, bias=True),
            *norm(f"{start}ln_2", hidden, bias=True),
            *layer(f"{start}mlp.c_fc", inner, hidden, bias=True),
            *layer(f"{start}mlp.c_proj", hidden, inner, bias=True),
        ]
    tensors += norm("transformer.ln_f", hidden, bias=True)
    masks = (Buffer(f"transformer.h.{number}.attn.attention.bias", (1, 1, positions, positions), 1) for number in range(count))
    return _model(config, tensors, sizes, inner, buffers=tuple(masks))


@family("gpt_neox")
def gpt_neox(config: Config) -> Architecture:
    """GPT-NeoX and Pythia."""
    sizes = _sizes(config, "hidden_size", "num_hidden_layers", "num_attention_heads")
    hidden, count, heads = sizes
    inner, biased = config.count("intermediate_size"), config.flag("attention_bias", default=True)
    tensors = [Tensor("gpt_neox.embed_in.weight", (config.count("vocab_size"), hidden), "embedding")]
    for number in range(count):
        start = f"gpt_neox.layers.{number}."
        tensors += [
            *norm(f"{start}input_layernorm", hidden, bias=True),
            *norm(f"{start}post_attention_layernorm", hidden, bias=True),
            *layer(f"{start}attention.query_key_value", 3 * hidden, hidden, bias=biased),
            *layer(f"{start}attention.dense", hidden, hidden, bias=biased),
            *layer(f"{start}mlp.dense_h_to_4h", inner, hidden, bias=True),
            *layer(f"{start}mlp.dense_4h_to_h", hidden, inner, bias=True),
        ]
    tensors += norm("gpt_neox.final_layer_norm", hidden, bias=True)
    part = config.share("rotary_pct", default=0.25)
    frequencies = rotary(config, "gpt_neox.rotary_emb", hidden // heads, part=part)
    return _model(config, tensors, sizes, inner, buffers=frequencies, tied=False)


@family("opt")
def opt(config: Config) -> Architecture:
    """OPT, of which the embedding may be narrower than the rest."""
    sizes = _sizes(config, "hidden_size", "num_hidden_layers", "num_attention_heads")
    hidden, count, _ = sizes
    inner, width = config.count("ffn_dim"), config.count("word_embed_proj_dim", default=hidden)
    biased, start = config.flag("enable_bias", default=True), "model.decoder."
    affine = config.flag("layer_norm_elementwise_affine", default=True)
    tensors = [
        Tensor(f"{start}embed_tokens.weight", (config.count("vocab_size"), width), "embedding"),
        Tensor(f"{start}embed_positions.weight", (config.count("max_position_embeddings") + _POSITIONS_BEFORE, hidden)),
    ]
    if width != hidden:
        tensors += [*layer(f"{start}project_out", width, hidden), *layer(f"{start}project_in", hidden, width)]
    before = config.flag("do_layer_norm_before", default=True)
    if affine and before and not config.flag("_remove_final_layer_norm", default=False):
        tensors += norm(f"{start}final_layer_norm", hidden, bias=True)
    for number in range(count):
        block = f"{start}layers.{number}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            tensors += layer(f"{block}self_attn.{name}", hidden, hidden, bias=biased)
        tensors += [
            *(norm(f"{block}self_attn_layer_norm", hidden, bias=True) if affine else ()),
            *layer(f"{block}fc1", inner, hidden, bias=biased),
            *layer(f"{block}fc2", hidden, inner, bias=biased),
            *(norm(f"{block}final_layer_norm", hidden, bias=True) if affine else ()),
        ]
    return _model(config, tensors, sizes, inner, output=width)


def _sizes(config: Config, hidden: str, layers: str, heads: str) -> tuple[int, int, int]:
    """Hidden size, layers and heads, under a family's own names or the usual ones."""
    usual = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    width, count, found = (config.count(*dict.fromkeys((own, name))) for name, own in usual.items())
    per_head(config, width, found)
    return width, count, found


def _embeddings(config: Config, hidden: int, *, positions: int) -> list[Tensor]:
    """Those of tokens and of positions, as GPT-2 calls them."""
    return [
        Tensor("transformer.wte.weight", (config.count("vocab_size"), hidden), "embedding"),
        Tensor("transformer.wpe.weight", (positions, hidden)),
    ]


def _model(
    config: Config, tensors: Sequence[Tensor], sizes: tuple[int, int, int], inner: int, *, tied: bool = True,
    buffers: tuple[Buffer, ...] = (), output: int | None = None,
) -> Architecture:  # fmt: skip
    """The whole, with an output layer from ``output`` values where it is not the embedding; ``tied`` if nothing is said."""
    hidden, count, heads = sizes
    vocabulary, shared = config.count("vocab_size"), config.flag("tie_word_embeddings", default=tied)
    each = Heads(heads, heads, hidden // heads)
    return Architecture(
        name="", model_type=config.text("model_type"), config=config.body,
        tensors=(*tensors, *(() if shared else layer("lm_head", vocabulary, output or hidden, role="output"))),
        buffers=buffers, layers=cache_layers(config, each, count, window=config.optional("sliding_window")), width=hidden,
        inner_width=2 * inner, attention_width=3 * hidden, vocabulary=vocabulary,
        context=config.optional("max_position_embeddings", "n_positions"), tied=shared,
    )  # fmt: skip
