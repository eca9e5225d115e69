"""Falcon: fused projections of one key and value for all heads, or of groups of heads since its decoder was renewed."""

from __future__ import annotations

from dataclasses import replace

from quantbench.models.architecture import Architecture, Config, Tensor, family
from quantbench.models.architecture.parts import Heads, cache_layers, layer, norm, per_head, require_groups, rotary


@family("falcon")
def falcon(config: Config) -> Architecture:
    """Falcon, with its old and its new decoder."""
    hidden, count = config.count("n_embed", "hidden_size"), config.count("num_hidden_layers")
    heads, renewed = _heads(config, hidden), config.flag("new_decoder_architecture", default=False)
    inner, biased = config.count("ffn_hidden_size", default=4 * hidden), config.flag("bias", default=False)
    vocabulary, tied = config.count("vocab_size"), config.flag("tie_word_embeddings", default=True)
    first, last = _norms(config, renewed=renewed)
    tensors = [Tensor("transformer.word_embeddings.weight", (vocabulary, hidden), "embedding")]
    for number in range(count):
        start = f"transformer.h.{number}."
        tensors += [
            *layer(f"{start}self_attention.query_key_value", heads.width, hidden, bias=biased),
            *layer(f"{start}self_attention.dense", hidden, hidden, bias=biased),
            *layer(f"{start}mlp.dense_h_to_4h", inner, hidden, bias=biased),
            *layer(f"{start}mlp.dense_4h_to_h", hidden, inner, bias=biased),
            *(each for name in (first, last) if name for each in norm(start + name, hidden, bias=True)),
        ]
    tensors += norm("transformer.ln_f", hidden, bias=True)
    if not tied:
        tensors += layer("lm_head", vocabulary, hidden, role="output")
    layers = cache_layers(config, heads, count, window=config.optional("sliding_window"))
    copies = heads.count // heads.kept if renewed else 1  # transformers repeats keys and values before it keeps them
    return Architecture(
        name="", model_type=config.text("model_type"), config=config.body, tensors=tuple(tensors),
        buffers=rotary(config, "transformer.rotary_emb", heads.size),
        layers=tuple(replace(each, copies=copies) for each in layers), width=hidden, inner_width=2 * inner,
        attention_width=heads.width, vocabulary=vocabulary, context=config.optional("max_position_embeddings"), tied=tied,
    )  # fmt: skip


def _heads(config: Config, hidden: int) -> Heads:
    """One key and value for all heads with multi_query, groups with the new decoder, else one for each."""
    count = config.count("num_attention_heads")
    size = per_head(config, hidden, count)
    if config.flag("new_decoder_architecture", default=False):
        kept = config.count("num_kv_heads", default=count)
        require_groups(config, count, kept)
        return Heads(count, kept, size)
    return Heads(count, 1 if config.flag("multi_query", default=True) else count, size)


def _norms(config: Config, *, renewed: bool) -> tuple[str, str]:
    """The norms of a layer: two where attention and feed-forward run in turn or have one each; the second may be empty."""
    if not config.flag("parallel_attn", default=True):
        return "post_attention_layernorm", "input_layernorm"
    if config.count("num_ln_in_parallel_attn", default=2 if renewed else 1) == 2:
        return "ln_attn", "ln_mlp"
    return "input_layernorm", ""
