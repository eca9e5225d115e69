"""Llama and what is built like it: RMS norms, rotary positions, grouped heads, a gated feed-forward layer."""

from __future__ import annotations

from quantbench.architecture import Architecture, Buffer, CacheLayer, Config, Tensor, family

_ROTARY_BYTES = 4
"""Rotary frequencies are float32 whatever the model's dtype."""


@family("llama", "mistral", "qwen2", "qwen3")
def llama(config: Config) -> Architecture:
    """Llama, Mistral, Qwen2 and Qwen3."""
    kind = config.body.get("model_type")
    hidden, inner = config.count("hidden_size"), config.count("intermediate_size")
    heads, count = config.count("num_attention_heads"), config.count("num_hidden_layers")
    kept = config.count("num_key_value_heads", default=heads)
    size = config.count("head_dim", default=max(1, hidden // heads))
    vocabulary = config.count("vocab_size")
    tied = config.flag("tie_word_embeddings", default=False)
    biased = config.flag("attention_bias", default=kind == "qwen2")
    tensors = [Tensor("model.embed_tokens.weight", (vocabulary, hidden), "embedding")]
    for number in range(count):
        start = f"model.layers.{number}."
        shapes = {
            "q": (heads * size, hidden),
            "k": (kept * size, hidden),
            "v": (kept * size, hidden),
            "o": (hidden, heads * size),
        }
        for name, shape in shapes.items():
            tensors.append(Tensor(f"{start}self_attn.{name}_proj.weight", shape, "linear"))
            if biased and (name != "o" or kind != "qwen2"):
                tensors.append(Tensor(f"{start}self_attn.{name}_proj.bias", shape[:1]))
        if kind == "qwen3":
            tensors += [Tensor(f"{start}self_attn.{name}_norm.weight", (size,)) for name in ("q", "k")]
        tensors += [Tensor(f"{start}mlp.{name}_proj.weight", (inner, hidden), "linear") for name in ("gate", "up")]
        tensors.append(Tensor(f"{start}mlp.down_proj.weight", (hidden, inner), "linear"))
        tensors += [Tensor(f"{start}{name}_layernorm.weight", (hidden,)) for name in ("input", "post_attention")]
    tensors.append(Tensor("model.norm.weight", (hidden,)))
    if not tied:
        tensors.append(Tensor("lm_head.weight", (vocabulary, hidden), "output"))
    return Architecture(
        name="", model_type=str(kind), config=config.body, tensors=tuple(tensors),
        buffers=(Buffer("model.rotary_emb.inv_freq", (size // 2,), _ROTARY_BYTES),),
        layers=(CacheLayer(heads=kept, head_dim=size),) * count,
        width=hidden, inner_width=2 * inner, attention_width=(heads + 2 * kept) * size, vocabulary=vocabulary,
        context=config.count("max_position_embeddings"), tied=tied,
    )  # fmt: skip
