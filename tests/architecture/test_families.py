"""Every family, and types that have none, against transformers' model of the same keys: tensors, roles, buffers, cache."""

from __future__ import annotations

import json
import warnings
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantbench.core.errors import ModelError
from quantbench.models import architecture, meta
from quantbench.models.architecture import FAMILIES, Architecture
from quantbench.models.architecture.shapes import from_shapes

SMALL: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 64, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
PLAIN = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
GPT2 = {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 32, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1}
GPT_NEO = {
    "hidden_size": 24, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "vocab_size": 64,
    "max_position_embeddings": 32, "window_size": 8, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
OPT = {**PLAIN, "ffn_dim": 40}
MOE = {**SMALL, "num_experts_per_tok": 2}
QWEN_MOE = {**MOE, "num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}
SHARED = {**QWEN_MOE, "shared_expert_intermediate_size": 36}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
MIXED = ["full_attention", "sliding_attention", "full_attention"]
WINDOWED = {"use_sliding_window": True, "sliding_window": 8}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa": ("llama", SMALL),
    "llama-heads-of-their-own": ("llama", PLAIN),
    "llama-null-kv-heads": ("llama", {**SMALL, "num_key_value_heads": None}),
    "llama-tied": ("llama", {**SMALL, "tie_word_embeddings": True}),
    "llama-biases-and-head-dim": ("llama", {**SMALL, "attention_bias": True, "mlp_bias": True, "head_dim": 10}),
    "llama-3-rope": ("llama", {**SMALL, "rope_scaling": LLAMA3}),
    "llama-old-rope": ("llama", {**SMALL, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama-partly-rotated": (
        "llama", {**SMALL, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
    ),
    "llama-no-part": ("llama", {**SMALL, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    "llama-windows": ("llama", {**SMALL, "sliding_window": 8}),
    "mistral-usual-window": ("mistral", SMALL),
    "mistral-no-window": ("mistral", {**SMALL, "sliding_window": None, "head_dim": 10}),
    "mistral-absent-kv-heads": ("mistral", {**PLAIN, "num_attention_heads": 16, "head_dim": 4, "sliding_window": 8}),
    "qwen2": ("qwen2", SMALL),
    "qwen2-flag-off": ("qwen2", {**SMALL, "use_sliding_window": False, "sliding_window": 8, "attention_bias": False}),
    "qwen2-windows": ("qwen2", {**SMALL, **WINDOWED, "max_window_layers": 1, "tie_word_embeddings": True}),
    "qwen2-all-windows": ("qwen2", {**SMALL, **WINDOWED, "max_window_layers": 0}),
    "qwen2-late-windows": ("qwen2", {**SMALL, "use_sliding_window": True}),
    "qwen3-usual-head": ("qwen3", SMALL),
    "qwen3-bias": ("qwen3", {**SMALL, "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-layer-types": ("qwen3", {**SMALL, **WINDOWED, "head_dim": 8, "layer_types": MIXED}),
    "mixtral": ("mixtral", {**MOE, "num_local_experts": 4}),
    "mixtral-window": ("mixtral", {**MOE, "num_local_experts": 4, "sliding_window": 8, "head_dim": 10}),
    "qwen2-moe": ("qwen2_moe", SHARED),
    "qwen2-moe-some-dense": ("qwen2_moe", {**SHARED, "decoder_sparse_step": 2, "qkv_bias": False, **WINDOWED}),
    "qwen3-moe": ("qwen3_moe", QWEN_MOE),
    "qwen3-moe-some-dense": ("qwen3_moe", {**QWEN_MOE, "mlp_only_layers": [1], "attention_bias": True, **WINDOWED}),
}  # fmt: skip

MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", SMALL),
    "gemma-untied": ("gemma", {**SMALL, "head_dim": 8, "attention_bias": True, "tie_word_embeddings": False}),
    "gemma2": ("gemma2", {**SMALL, "head_dim": 8}),
    "gemma2-window": ("gemma2", {**SMALL, "head_dim": 8, "sliding_window": 8, "layer_types": MIXED}),
    "gemma3-all-windows": ("gemma3_text", SMALL),
    "gemma3-both-kinds": ("gemma3_text", {**SMALL, "head_dim": 8, "sliding_window": 8, "layer_types": MIXED}),
    "gemma3-every-second": ("gemma3_text", {**SMALL, "head_dim": 8, "sliding_window_pattern": 2}),
    "gemma3-both-ways": ("gemma3_text", {**SMALL, "head_dim": 8, "sliding_window": 8, "use_bidirectional_attention": True}),
    "phi": ("phi", {**SMALL, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "phi-norms": ("phi", {**PLAIN, "qk_layernorm": True, "partial_rotary_factor": 0.7, "tie_word_embeddings": True}),
    "phi3": ("phi3", SMALL),
    "phi3-part": ("phi3", {**PLAIN, "partial_rotary_factor": 0.7, "tie_word_embeddings": True, "sliding_window": 8}),
    "phi3-long": (
        "phi3", {**SMALL, "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3,
                                           "original_max_position_embeddings": 16, "factor": 2.0}},
    ),
    "gpt2": ("gpt2", GPT2),
    "gpt2-inner": ("gpt2", {**GPT2, "n_inner": 40, "tie_word_embeddings": False}),
    "gpt-neo": ("gpt_neo", GPT_NEO),
    "gpt-neo-inner": ("gpt_neo", {**GPT_NEO, "intermediate_size": 40, "tie_word_embeddings": False}),
    "gpt-neox": ("gpt_neox", PLAIN),
    "gpt-neox-plain": ("gpt_neox", {**PLAIN, "attention_bias": False, "rotary_pct": 1.0, "tie_word_embeddings": True}),
    "opt": ("opt", OPT),
    "opt-projected": ("opt", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False, "tie_word_embeddings": False}),
    "opt-bare": ("opt", {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False}),
    "opt-old": ("opt", {**OPT, "_remove_final_layer_norm": True}),
    "falcon-7b-like": ("falcon", {**PLAIN, "bias": False}),
    "falcon-40b-like": ("falcon", {**PLAIN, "new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False}),
    "falcon-11b-like": ("falcon", {**PLAIN, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "falcon-rw-like": (
        "falcon", {**PLAIN, "multi_query": False, "parallel_attn": False, "alibi": True, "bias": True, "ffn_hidden_size": 40},
    ),
}  # fmt: skip
"""Of model types that are counted from transformers' own module."""

WIDTHS = {
    "llama-gqa": (120, 48), "llama-biases-and-head-dim": (120, 80), "gemma2": (120, 64), "phi": (80, 48), "phi3": (120, 48),
    "gpt2": (192, 72), "gpt2-inner": (80, 72), "opt-projected": (80, 72), "gpt-neo": (192, 72), "gpt-neox": (80, 72),
    "falcon-7b-like": (192, 36), "falcon-40b-like": (192, 48), "falcon-rw-like": (80, 72), "mixtral": (240, 48),
    "qwen2-moe": (108, 64), "qwen2-moe-some-dense": (120, 64), "qwen3-moe": (96, 64), "qwen3-moe-some-dense": (120, 64),
}  # fmt: skip
"""Values of gate, up and product (of all experts of a token), or of a layer and its activation; of queries, keys, values."""

RUN = (
    *WIDTHS, "llama-null-kv-heads", "llama-windows", "mistral-absent-kv-heads", "qwen2-windows", "qwen3-layer-types", "gemma",
    "gemma3-both-kinds", "falcon-11b-like",
)  # fmt: skip
"""Cases whose models are filled and run, each with another kind of heads."""


@dataclass(frozen=True)
class Pair:
    """A configuration of transformers, its model on the meta device in bfloat16, and what is read from the same keys."""

    config: Any
    model: Any
    read: Architecture
    read_as_saved: Architecture


@pytest.fixture(scope="module", params=[*CASES, *MODULES], name="pair")
def _pair(request: pytest.FixtureRequest) -> Pair:
    return _make(*(CASES | MODULES)[request.param])


def _read(body: dict[str, Any], source: str) -> Architecture:
    if architecture.is_known(body):
        return architecture.read(body, "tiny", source)
    return from_shapes(body, "tiny", source, meta.as_shapes(meta.describe_config(body)))


def _make(model_type: str, keys: dict[str, Any]) -> Pair:
    from transformers import AutoConfig

    body = {"model_type": model_type, **deepcopy(keys)}
    config = AutoConfig.for_model(model_type, **deepcopy(keys))
    saved = json.loads(config.to_json_string())
    model = _meta(config, "bfloat16")
    return Pair(config, model, _read(body, "keys"), _read(saved, "saved keys"))


def _meta(config: Any, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def _shapes(named: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in named}


def test_there_is_a_case_of_every_known_model_type() -> None:
    known = {each for family in FAMILIES for each in family.model_types}
    assert _model_types(CASES) == known
    assert not _model_types(MODULES) & known


def _model_types(cases: dict[str, tuple[str, dict[str, Any]]]) -> set[str]:
    return {model_type for model_type, _ in cases.values()}


def test_tensors_have_transformers_names_and_shapes(pair: Pair) -> None:
    expected = _shapes(pair.model.named_parameters())
    for read in (pair.read, pair.read_as_saved):
        assert {each.name: each.shape for each in read.tensors} == expected
        assert len(read.tensors) == len(expected)
        assert read.parameters == sum(each.numel() for each in pair.model.parameters()) > 0
        assert read.tied == pair.config.tie_word_embeddings
        kind = pair.config.model_type
        note = "" if kind in _model_types(CASES) else f"model type {kind!r}: shapes from transformers' own module"
        assert (read.name, read.model_type, read.note) == ("tiny", kind, note)


def test_roles_are_those_of_the_modules(pair: Pair) -> None:
    assert {each.name: each.role for each in pair.read.tensors} == dict(_roles(pair.model))


def _roles(model: Any) -> Any:
    import torch
    from transformers.pytorch_utils import Conv1D

    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        if module is model.get_input_embeddings():
            role = "embedding"
        elif parameter.dim() == 3:
            role = "experts"
        elif parameter.dim() == 2 and isinstance(module, torch.nn.Linear):
            role = "output" if module is model.get_output_embeddings() else "linear"
        else:
            role = "conv1d" if parameter.dim() == 2 and isinstance(module, Conv1D) else "other"
        yield name, role


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float32", 4)])
def test_buffers_take_as_many_bytes(pair: Pair, dtype: str, size: int) -> None:
    model = pair.model if dtype == "bfloat16" else _meta(pair.config, dtype)
    expected = {name: (tuple(each.shape), each.nbytes) for name, each in model.named_buffers()}
    for read in (pair.read, pair.read_as_saved):
        assert {each.name: (each.shape, each.bytes_in(size)) for each in read.buffers} == expected
        assert read.buffer_bytes_in(size) == sum(each.nbytes for each in model.buffers())


def test_windows_are_those_of_transformers_cache(pair: Pair) -> None:
    from transformers import DynamicCache

    expected = [getattr(each, "sliding_window", None) for each in DynamicCache(config=pair.config).layers]
    assert len(expected) == len(pair.read.layers)
    for read in (pair.read, pair.read_as_saved):
        assert [each.window for each in read.layers] == expected


@pytest.mark.parametrize("case", RUN)
def test_the_cache_holds_the_keys_and_values_that_are_foretold(case: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    pair = _make(*(CASES | MODULES)[case])
    model = AutoModelForCausalLM.from_config(pair.config).eval()
    cache, seen = DynamicCache(config=pair.config), 4
    with torch.inference_mode():
        model(input_ids=torch.arange(2, 2 + seen)[None], past_key_values=cache, use_cache=True)
    held = [tuple(each.shape) for layer in cache.layers for each in (layer.keys, layer.values)]
    expected = [(1, each.heads * each.copies, seen, each.head_dim) for each in pair.read.layers for _ in range(2)]
    assert held == expected


@pytest.mark.parametrize("case", WIDTHS)
def test_widths_are_those_of_the_widest_step(case: str) -> None:
    model_type, keys = (CASES | MODULES)[case]
    read = _read({"model_type": model_type, **keys}, "keys")
    assert (read.inner_width, read.attention_width) == WIDTHS[case]
    assert (read.width, read.vocabulary, read.context) == (24, 64, 32)


@settings(max_examples=20)
@given(
    heads=st.sampled_from([(1, 1), (4, 1), (6, 3), (12, 4)]),
    head_dim=st.one_of(st.none(), st.integers(1, 20).map(lambda half: 2 * half)),
    inner=st.integers(1, 70),
    layers=st.integers(1, 4),
    vocabulary=st.integers(1, 90),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_a_llama_of_any_size_is_counted_as_transformers_counts_it(
    *, heads: tuple[int, int], head_dim: int | None, inner: int, layers: int, vocabulary: int, flags: tuple[bool, bool, bool]
) -> None:
    keys = {
        "hidden_size": 24, "num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": head_dim,
        "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary, "max_position_embeddings": 16,
        "tie_word_embeddings": flags[0], "attention_bias": flags[1], "mlp_bias": flags[2],
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    pair = _make("llama", keys)
    assert {each.name: each.shape for each in pair.read.tensors} == _shapes(pair.model.named_parameters())
    assert pair.read.buffer_bytes == sum(each.nbytes for each in pair.model.buffers())


STRANGE = (None, "x", 1.5, True, [], [1], {}, {"a": 1}, 0, -1, ["a", "b", "c"])


@pytest.mark.parametrize("case", CASES)
def test_whatever_a_key_holds_is_read_or_refused_in_one_line(case: str) -> None:
    model_type, keys = CASES[case]
    refused = []
    for name in (*keys, "head_dim", "layer_types", "sliding_window", "rope_scaling", "rope_parameters", "quantization_config"):
        for value in STRANGE:
            try:
                architecture.read({"model_type": model_type, **keys, name: value}, "tiny", "keys")
            except ModelError as error:
                refused.append(str(error))
    assert len(refused) > len(STRANGE)
    assert not [each for each in refused if "\n" in each or not each.startswith("keys ")]
