"""Gemma: like Llama with wider heads, a scaled embedding that is the output layer too, and from Gemma 2 on two more norms."""

from __future__ import annotations

from quantbench.models.architecture import Architecture, Buffer, CacheLayer, Config, Tensor, family
from quantbench.models.architecture.parts import (
    Heads,
    attention,
    cache_layers,
    decoder,
    frequencies,
    gated,
    layer_kinds,
    norm,
    read_heads,
    rotary,
)

_KEPT = {"gemma": 16, "gemma2": 4, "gemma3_text": 4}
_HEAD = 256
_WINDOW = 4096
_PATTERN = {"gemma2": 2, "gemma3_text": 6}
"""What transformers takes for keys that a configuration lacks; every so many layers one keeps all positions."""

_NORMS = {
    "gemma": ("input_layernorm", "post_attention_layernorm"),
    "gemma2": ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
}


@family(*_KEPT)
def gemma(config: Config) -> Architecture:
    """Gemma, Gemma 2 and Gemma 3 without its images."""
    kind = config.text("model_type")
    hidden, inner, count = config.count("hidden_size"), config.count("intermediate_size"), config.count("num_hidden_layers")
    heads = read_heads(config, hidden, kept=_KEPT[kind], size=_HEAD)
    biased = config.flag("attention_bias", default=False)
    blocks: list[Tensor] = []
    for number in range(count):
        start = f"model.layers.{number}."
        blocks += attention(f"{start}self_attn", heads, hidden, qkv_bias=biased, out_bias=biased)
        if kind == "gemma3_text":
            blocks += [*norm(f"{start}self_attn.q_norm", heads.size), *norm(f"{start}self_attn.k_norm", heads.size)]
        blocks += gated(f"{start}mlp", inner, hidden)
        blocks += [each for name in _NORMS.get(kind, _NORMS["gemma2"]) for each in norm(start + name, hidden)]
    layers = _layers(config, kind, heads, count)
    return decoder(
        config, blocks, heads=heads, layers=layers, buffers=_buffers(config, kind, heads, layers), inner_width=3 * inner,
        tied=config.flag("tie_word_embeddings", default=True),
    )  # fmt: skip


def _layers(config: Config, kind: str, heads: Heads, count: int) -> tuple[CacheLayer, ...]:
    """All positions in every layer of Gemma; from Gemma 2 on a window in all but every second or sixth."""
    if kind == "gemma":
        return cache_layers(config, heads, count, window=config.optional("sliding_window"))
    window = config.optional("sliding_window", default=_WINDOW if "sliding_window" not in config.body else None)
    if window and kind == "gemma3_text" and config.flag("use_bidirectional_attention", default=False):
        window = window // 2 + 1
    pattern = config.count("sliding_window_pattern", default=_PATTERN[kind]) if kind == "gemma3_text" else _PATTERN[kind]
    kinds = layer_kinds((number + 1) % pattern != 0 for number in range(count))
    return cache_layers(config, heads, count, window=window, kinds=kinds)


def _buffers(config: Config, kind: str, heads: Heads, layers: tuple[CacheLayer, ...]) -> tuple[Buffer, ...]:
    """The embedding's scale, in the model's own dtype, and the frequencies: in Gemma 3 of each kind of layer there is."""
    scale = Buffer("model.embed_tokens.embed_scale", (), None)
    module = "model.rotary_emb"
    if kind != "gemma3_text":
        return (scale, *rotary(config, module, heads.size))
    found = sorted({"full_attention" if layer.window is None else "sliding_attention" for layer in layers})
    return (scale, *(each for name in found for each in frequencies(module, heads.size, f"{name}_")))
