"""Phi: heads that rotate in part; Phi-1 and Phi-2 with biases everywhere, Phi-3 with fused projections."""

from __future__ import annotations

from dataclasses import replace

from quantbench.models.architecture import Architecture, Config, Tensor, family
from quantbench.models.architecture.parts import attention, cache_layers, decoder, layer, norm, per_head, read_heads, rotary


@family("phi")
def phi(config: Config) -> Architecture:
    """Phi-1 and Phi-2."""
    hidden, inner, count = config.count("hidden_size"), config.count("intermediate_size"), config.count("num_hidden_layers")
    heads = read_heads(config, hidden)
    normed = config.flag("qk_layernorm", default=False)
    blocks: list[Tensor] = []
    for number in range(count):
        start = f"model.layers.{number}."
        blocks += attention(f"{start}self_attn", heads, hidden, qkv_bias=True, out_bias=True, out="dense")
        for name in ("q", "k") if normed else ():
            blocks += norm(f"{start}self_attn.{name}_layernorm", per_head(config, hidden, heads.count), bias=True)
        blocks += [*layer(f"{start}mlp.fc1", inner, hidden, bias=True), *layer(f"{start}mlp.fc2", hidden, inner, bias=True)]
        blocks += norm(f"{start}input_layernorm", hidden, bias=True)
    found = decoder(
        config, blocks, heads=heads, buffers=rotary(config, "model.rotary_emb", heads.size, part=0.5),
        layers=cache_layers(config, heads, count, window=config.optional("sliding_window")), inner_width=2 * inner,
        tied=config.flag("tie_word_embeddings", default=False), last=norm("model.final_layernorm", hidden, bias=True),
    )  # fmt: skip
    return replace(found, tensors=(*found.tensors, Tensor("lm_head.bias", (found.vocabulary,))))


@family("phi3")
def phi3(config: Config) -> Architecture:
    """Phi-3, Phi-3.5 and Phi-4, without images."""
    hidden, inner, count = config.count("hidden_size"), config.count("intermediate_size"), config.count("num_hidden_layers")
    heads = read_heads(config, hidden)
    blocks: list[Tensor] = []
    for number in range(count):
        start = f"model.layers.{number}."
        blocks += layer(f"{start}self_attn.o_proj", hidden, heads.count * heads.size)
        blocks += layer(f"{start}self_attn.qkv_proj", heads.width, hidden)
        blocks += [*layer(f"{start}mlp.gate_up_proj", 2 * inner, hidden), *layer(f"{start}mlp.down_proj", hidden, inner)]
        blocks += [*norm(f"{start}input_layernorm", hidden), *norm(f"{start}post_attention_layernorm", hidden)]
    return decoder(
        config, blocks, heads=heads, buffers=rotary(config, "model.rotary_emb", heads.size, part=1.0),
        layers=cache_layers(config, heads, count, window=config.optional("sliding_window")), inner_width=3 * inner,
        tied=config.flag("tie_word_embeddings", default=False),
    )  # fmt: skip
