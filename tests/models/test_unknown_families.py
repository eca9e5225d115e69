"""Models of no family that is known by name: shapes from transformers' own module, else from headers, else as a Llama's."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.errors import ModelError
from quantbench.models import meta
from quantbench.models.architecture import AS_LLAMA, Architecture
from quantbench.models.config import read_architecture
from quantbench.planning import planner

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SMALL: Mapping[str, Any] = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 64, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "olmo2": {}, "cohere": {"use_qk_norm": True}, "granite": {"attention_bias": True},
    "stablelm": {"use_qkv_bias": True, "qk_layernorm": True}, "starcoder2": {"sliding_window": 8},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
TOTALS: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    "starcoder2": (3_030_371_328, {
        "hidden_size": 3072, "num_hidden_layers": 30, "intermediate_size": 12288, "num_attention_heads": 24,
        "num_key_value_heads": 2, "vocab_size": 49152, "use_bias": True,
    }),
    "olmo2": (7_298_617_344, {
        "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 100352, "tie_word_embeddings": False,
    }),
    "cohere": (34_980_831_232, {
        "hidden_size": 8192, "num_hidden_layers": 40, "intermediate_size": 22528, "num_attention_heads": 64,
        "num_key_value_heads": 64, "vocab_size": 256000,
    }),
    "granite": (2_533_531_648, {
        "hidden_size": 2048, "num_hidden_layers": 40, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 49155, "tie_word_embeddings": True,
    }),
    "stablelm": (1_644_515_328, {
        "hidden_size": 2048, "num_hidden_layers": 24, "intermediate_size": 5632, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 100352, "use_qkv_bias": True, "tie_word_embeddings": False,
    }),
    "gpt2": (124_439_808, {
        "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "n_ctx": 1024, "vocab_size": 50257,
        "activation_function": "gelu_new",
    }),
    "gpt_neo": (125_198_592, {
        "hidden_size": 768, "num_layers": 12, "num_heads": 12, "attention_types": [[["global", "local"], 6]],
        "vocab_size": 50257, "max_position_embeddings": 2048, "window_size": 256,
    }),
    "gpt_neox": (162_322_944, {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "vocab_size": 50304, "max_position_embeddings": 2048, "rotary_pct": 0.25, "tie_word_embeddings": False,
    }),
    "opt": (331_196_416, {
        "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "vocab_size": 50272,
        "max_position_embeddings": 2048, "word_embed_proj_dim": 512, "do_layer_norm_before": False,
    }),
    "falcon": (6_921_720_704, {
        "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "vocab_size": 65024, "multi_query":
        True, "parallel_attn": True, "bias": False, "alibi": False, "new_decoder_architecture": False,
    }),
    "phi": (2_779_683_840, {
        "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 51200, "max_position_embeddings": 2048, "partial_rotary_factor": 0.4, "qk_layernorm": False,
        "tie_word_embeddings": False,
    }),
    "phi3": (3_821_079_552, {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096, "sliding_window": 2047,
        "tie_word_embeddings": False,
    }),
    "gemma": (2_506_172_416, {
        "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000, "max_position_embeddings": 8192,
    }),
    "gemma2": (2_614_341_888, {
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000, "max_position_embeddings": 8192,
        "sliding_window": 4096,
    }),
    "gemma3_text": (999_885_952, {
        "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "max_position_embeddings": 32768,
        "sliding_window": 512, "sliding_window_pattern": 6,
    }),
}  # fmt: skip
"""StarCoder2-3B, OLMo-2-7B, Command R, Granite-3.0-2B, StableLM-2-1.6B, GPT-2, GPT-Neo-125M, Pythia-160M, OPT-350M, Falcon-7B,
Phi-2, Phi-3-mini, Gemma-2B, Gemma-2-2B and Gemma-3-1B, with parameters counted by hand."""

WINDOWS: Mapping[str, list[int | None]] = {
    "gemma2": [4096, None] * 13, "gemma3_text": [*[*[512] * 5, None] * 4, 512, 512],
    "falcon": [None] * 32, "phi3": [2047] * 32,
}  # fmt: skip
HEADS: Mapping[str, tuple[int, int]] = {"gemma2": (4, 256), "gemma3_text": (1, 256), "falcon": (1, 64), "phi3": (32, 96)}
"""Of each layer the heads that it keeps keys and values of, and the values of each."""


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts a child fails."""

    def start(*_: object) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(meta, "call_transformers", start)


@pytest.fixture
def no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if neither it nor torch were installed."""
    monkeypatch.setattr(meta, "versions", lambda _: {})


def _model(kind: str, **changes: object) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **FAMILIES.get(kind, {}), **changes))


def _config(folder: Path, kind: str, dimensions: Mapping[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **dimensions}))
    return str(folder)


def _require_same(read: Architecture, model: Any) -> None:
    """Names, shapes, roles, buffers and keys and values are those of the model."""
    import torch

    assert {each.name: each.shape for each in read.tensors} == {
        name: tuple(each.shape) for name, each in model.named_parameters()
    }
    linear = {f"{name}.weight" for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
    assert {each.name for each in read.tensors if each.role in ("linear", "output")} == linear & {
        name for name, _ in model.named_parameters()
    }
    _require_same_sums(read, model)


def _require_same_sums(read: Architecture, model: Any) -> None:
    import torch
    from transformers import DynamicCache

    assert read.parameters == sum(each.numel() for each in model.parameters())
    assert read.tied == (model.lm_head.weight is model.get_input_embeddings().weight)
    assert read.buffer_bytes == sum(each.nbytes for each in model.buffers())
    assert read.bounds == (1, 1)
    cache, seen = DynamicCache(config=model.config), 4
    with torch.inference_mode():
        model(input_ids=torch.arange(2, 2 + seen)[None], past_key_values=cache, use_cache=True)
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [(1, each.heads, seen, each.head_dim) for each in read.layers]
    assert [getattr(layer, "sliding_window", None) for layer in cache.layers] == [each.window for each in read.layers]


@pytest.mark.usefixtures("no_transformers")
@pytest.mark.parametrize("kind", [each for each in FAMILIES if each != "olmoe"])
def test_without_transformers_the_shapes_are_those_of_their_headers(kind: str, tmp_path: Path) -> None:
    model = _model(kind)
    model.save_pretrained(tmp_path)
    read = read_architecture(str(tmp_path))
    _require_same(read, model)
    assert f"model type {kind!r}: shapes from the headers of its safetensors" in read.note


@pytest.mark.usefixtures("no_transformers")
def test_experts_kept_apart_in_the_file_count_as_those_that_are_loaded(tmp_path: Path) -> None:
    model = _model("olmoe")
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    read = read_architecture(str(tmp_path))
    _require_same_sums(read, model)
    joined = sum(each.numel() for name, each in model.named_parameters() if ".experts." in name)
    assert sum(each.elements for each in read.tensors if each.role == "experts") == joined > 0


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_shapes_are_those_of_transformers_module(kind: str, tmp_path: Path) -> None:
    model = _model(kind)
    read = read_architecture(_config(tmp_path, kind, json.loads(model.config.to_json_string())))
    _require_same(read, model)
    assert f"model type {kind!r}: shapes from transformers' own module" in read.note


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("kind", TOTALS)
def test_published_models_have_as_many_parameters_as_their_repositories_say(kind: str, tmp_path: Path) -> None:
    total, dimensions = TOTALS[kind]
    assert read_architecture(_config(tmp_path, kind, dimensions)).parameters == total


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("kind", WINDOWS)
def test_published_models_keep_as_much_as_their_layers_say(kind: str, tmp_path: Path) -> None:
    layers = read_architecture(_config(tmp_path, kind, TOTALS[kind][1])).layers
    assert [each.window for each in layers] == WINDOWS[kind]
    assert {(each.heads, each.head_dim, each.copies) for each in layers} == {(*HEADS[kind], 1)}


@pytest.mark.usefixtures("in_process")
def test_a_model_that_does_not_run_without_values_keeps_what_its_heads_say(tmp_path: Path) -> None:
    read = read_architecture(_config(tmp_path, "biogpt", {**SMALL, "num_key_value_heads": None}))
    assert read.note.endswith("own module; its keys and values are counted by the heads in its config.json")
    assert {(each.heads, each.head_dim) for each in read.layers} == {(4, 8)}


@pytest.mark.usefixtures("no_transformers")
def test_without_transformers_and_weights_a_type_of_it_is_guessed_or_refused_and_told_why(tmp_path: Path) -> None:
    guessed = read_architecture(_config(tmp_path, "gemma2", TOTALS["gemma2"][1]))
    assert guessed.bounds == AS_LLAMA
    assert AS_LLAMA[0] * guessed.parameters < TOTALS["gemma2"][0] < AS_LLAMA[1] * guessed.parameters
    why = r"does not know \(torch and transformers not installed; no safetensors .*has no hidden_size"
    with pytest.raises(ModelError, match=why):
        read_architecture(_config(tmp_path, "gpt2", TOTALS["gpt2"][1]))


def test_a_child_is_asked_once_and_answers_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = _config(tmp_path, "starcoder2", {**SMALL, "quantization_config": {"quant_method": "novel"}})
    first = read_architecture(name)
    assert first.parameters == sum(each.numel() for each in _model("starcoder2").parameters())
    says = "the checkpoint is already quantized (novel): sizes in other methods are those of the unquantized model"
    assert first.note.endswith(says)
    monkeypatch.setattr(meta, "call_transformers", None)
    assert read_architecture(name) == first
    meta._told.cache_clear()
    assert read_architecture(name) == first


@pytest.mark.usefixtures("no_child")
def test_a_known_family_starts_no_child() -> None:
    assert read_architecture("llama-2-7b").bounds == (1, 1)
    assert read_architecture("canary").note == ""


@pytest.mark.usefixtures("no_transformers")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:100]), "is truncated"),
        (lambda file: file.write_bytes(struct.pack("<Q", 2**62)), "is truncated: its header is incomplete"),
        (lambda file: file.write_bytes(b"\xff" * 64), "is truncated: its header is incomplete"),
        (lambda file: file.unlink(), "no safetensors beside its config.json"),
    ],
)
def test_where_nothing_says_the_shapes_it_is_counted_as_a_llama_with_bounds(
    make: Any, reason: str, tmp_path: Path
) -> None:
    _model("starcoder2").save_pretrained(tmp_path)
    make(tmp_path / "model.safetensors")
    read = read_architecture(str(tmp_path))
    assert read.bounds == AS_LLAMA
    assert reason in read.note
    assert "is not known (torch and transformers not installed; " in read.note
    assert "): counted as a Llama of these dimensions; its weights" in read.note


@pytest.mark.usefixtures("no_transformers")
def test_a_header_longer_than_any_is_not_read(tmp_path: Path) -> None:
    _config(tmp_path, "novel", SMALL)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)  # a hole
    assert "its header would take 200000000 bytes" in read_architecture(str(tmp_path)).note


@pytest.mark.usefixtures("no_transformers")
@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"vocab_size": 65}, {"quantization_config": {"bits": 4}}])
def test_headers_of_another_model_are_left_alone(changes: Mapping[str, Any], tmp_path: Path) -> None:
    _model("starcoder2").save_pretrained(tmp_path)
    body = {**json.loads((tmp_path / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps(body))
    read = read_architecture(str(tmp_path))
    assert "; its safetensors " in read.note
    assert read.bounds == AS_LLAMA
    assert (len(read.layers), read.vocabulary) == (body["num_hidden_layers"], body["vocab_size"])


@pytest.mark.usefixtures("in_process")
def test_a_type_that_nobody_knows_is_planned_within_bounds(tmp_path: Path) -> None:
    read = read_architecture(_config(tmp_path, "novel", SMALL))
    assert "transformers does not know it either" in read.note
    weights = planner.forecast(read, "torch", ["bf16"])["bf16"]
    variant = planner.Variant(method="torch", precision="bf16")

    def plan(room: int) -> planner.Planned:
        devices = [planner.Device(name="here", memory_bytes=room)]
        return planner.planned(read, variant, weights, planner.Workload(context=8), devices)

    free = plan(10**9)
    assert weights.weight_bytes is not None
    assert (free.fits, free.refusal(planner.Device(name="here", memory_bytes=10**9))) == (True, "")
    assert free.least_weight_bytes == pytest.approx(weights.weight_bytes * AS_LLAMA[0], abs=1)
    assert free.most_weight_bytes == pytest.approx(weights.weight_bytes * AS_LLAMA[1], abs=1)
    room = free.peak_bytes or 0
    untold = plan(room)
    assert (untold.fits, untold.fits_on) == (None, {"here": None})
    assert untold.refusal(planner.Device(name="here", memory_bytes=room)) == ""
    refusal = plan(1000).refusal(planner.Device(name="here", memory_bytes=1000))
    assert "at least (weights" in refusal
    assert "counted as a Llama" in refusal
