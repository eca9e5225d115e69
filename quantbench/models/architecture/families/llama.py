"""Llama and models built like it: RMS norms, rotary positions, grouped heads, a gated feed-forward layer."""

from __future__ import annotations

from quantbench.models.architecture import Architecture, Config, Tensor, family
from quantbench.models.architecture.parts import attention, cache_layers, decoder, gated, layer_kinds, norm, read_heads, rotary

_KEPT = {"mistral": 8, "qwen2": 32, "qwen3": 32}
_WINDOW = 4096
_UNWINDOWED = 28
"""transformers' defaults for keys that are missing in configurations of these model types."""


@family("llama", "mistral", "qwen2", "qwen3")
def llama(config: Config) -> Architecture:
    """Llama, Mistral, Qwen2 and Qwen3."""
    kind = config.text("model_type")
    hidden, inner, count = config.count("hidden_size"), config.count("intermediate_size"), config.count("num_hidden_layers")
    heads = read_heads(config, hidden, kept=_KEPT.get(kind), size=128 if kind == "qwen3" else None)
    biased = kind not in ("mistral", "qwen2") and config.flag("attention_bias", default=False)
    blocks: list[Tensor] = []
    for number in range(count):
        start = f"model.layers.{number}."
        blocks += attention(f"{start}self_attn", heads, hidden, qkv_bias=biased or kind == "qwen2", out_bias=biased)
        if kind == "qwen3":
            blocks += [*norm(f"{start}self_attn.q_norm", heads.size), *norm(f"{start}self_attn.k_norm", heads.size)]
        blocks += gated(f"{start}mlp", inner, hidden, bias=kind not in _KEPT and config.flag("mlp_bias", default=False))
        blocks += [*norm(f"{start}input_layernorm", hidden), *norm(f"{start}post_attention_layernorm", hidden)]
    window = sliding_window(config)
    first = config.count("max_window_layers", default=_UNWINDOWED, least=0) if kind.startswith("qwen") and window else 0
    return decoder(
        config, blocks, heads=heads, buffers=rotary(config, "model.rotary_emb", heads.size),
        layers=cache_layers(config, heads, count, window=window, kinds=layer_kinds(each >= first for each in range(count))
                            if window else ()),
        inner_width=3 * inner, tied=config.flag("tie_word_embeddings", default=False),
    )  # fmt: skip


def sliding_window(config: Config) -> int | None:
    """How many positions a layer with a window keeps, None if no layer has one.

    Qwen has windows only if use_sliding_window says so; Mistral's default is 4096.
    """
    kind = config.text("model_type")
    if kind.startswith("qwen") and not config.flag("use_sliding_window", default=False):
        return None
    absent = _WINDOW if kind.startswith(("qwen", "mistral")) and "sliding_window" not in config.body else None
    return config.optional("sliding_window", default=absent)
