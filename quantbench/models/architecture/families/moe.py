"""Mixtures of experts: Mixtral, and Qwen2 and Qwen3 with experts; transformers keeps the experts of a layer in one tensor."""

from __future__ import annotations

from quantbench.models.architecture import Architecture, CacheLayer, Config, Tensor, family
from quantbench.models.architecture.families.llama import sliding_window
from quantbench.models.architecture.parts import (
    Heads,
    attention,
    cache_layers,
    decoder,
    gated,
    layer,
    layer_kinds,
    norm,
    read_heads,
    rotary,
)

_KEPT = {"mixtral": 8, "qwen2_moe": 16, "qwen3_moe": 4}
_UNWINDOWED = 28
"""transformers' defaults for keys that are missing in a configuration."""


@family(*_KEPT)
def moe(config: Config) -> Architecture:
    """Mixtral, Qwen2-MoE and Qwen3-MoE."""
    kind, hidden, count = config.text("model_type"), config.count("hidden_size"), config.count("num_hidden_layers")
    heads = read_heads(config, hidden, kept=_KEPT[kind])
    experts, inner = config.count("num_local_experts", "num_experts"), config.count("intermediate_size")
    small = inner if kind == "mixtral" else config.count("moe_intermediate_size")
    shared = config.count("shared_expert_intermediate_size") if kind == "qwen2_moe" else 0
    dense = _dense(config, kind, count)
    biased = config.flag("qkv_bias" if kind == "qwen2_moe" else "attention_bias", default=kind == "qwen2_moe")
    blocks: list[Tensor] = []
    for number in range(count):
        start = f"model.layers.{number}."
        blocks += attention(
            f"{start}self_attn", heads, hidden, qkv_bias=biased and kind != "mixtral", out_bias=biased and kind == "qwen3_moe"
        )
        if kind == "qwen3_moe":
            blocks += [*norm(f"{start}self_attn.q_norm", heads.size), *norm(f"{start}self_attn.k_norm", heads.size)]
        blocks += (
            gated(f"{start}mlp", inner, hidden) if number in dense else _experts(f"{start}mlp", experts, small, hidden, shared)
        )
        blocks += [*norm(f"{start}input_layernorm", hidden), *norm(f"{start}post_attention_layernorm", hidden)]
    at_once = (small * min(experts, config.count("num_experts_per_tok")), shared, inner if dense else 0)
    return decoder(
        config, blocks, heads=heads, layers=_layers(config, kind, heads, count),
        buffers=rotary(config, "model.rotary_emb", heads.size), inner_width=3 * max(at_once),
        tied=config.flag("tie_word_embeddings", default=False),
    )  # fmt: skip


def _experts(module: str, experts: int, inner: int, hidden: int, shared: int) -> list[Tensor]:
    """The router, the experts, and the expert that every token uses, ``shared`` wide, with its gate."""
    router = Tensor(f"{module}.gate.weight", (experts, hidden))
    own = [
        Tensor(f"{module}.experts.gate_up_proj", (experts, 2 * inner, hidden), "experts"),
        Tensor(f"{module}.experts.down_proj", (experts, hidden, inner), "experts"),
    ]
    if not shared:
        return [router, *own]
    return [router, *own, *gated(f"{module}.shared_expert", shared, hidden), *layer(f"{module}.shared_expert_gate", 1, hidden)]


def _dense(config: Config, kind: str, count: int) -> set[int]:
    """Qwen's layers without experts."""
    if kind == "mixtral":
        return set()
    step, plain = config.count("decoder_sparse_step", default=1), set(config.counts("mlp_only_layers"))
    return {number for number in range(count) if number in plain or (number + 1) % step}


def _layers(config: Config, kind: str, heads: Heads, count: int) -> tuple[CacheLayer, ...]:
    """Windows, if there are any: in every second one of the first layers in Qwen2, in all layers elsewhere."""
    window = sliding_window(config)
    if kind != "qwen2_moe" or not window:
        return cache_layers(config, heads, count, window=window)
    first = config.count("max_window_layers", default=_UNWINDOWED, least=0)
    kinds = layer_kinds(number % 2 == 0 and number < first for number in range(count))
    return cache_layers(config, heads, count, window=window, kinds=kinds)
