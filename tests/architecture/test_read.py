"""Configurations of unknown models, and those that cannot be read: one sentence that names the file, the key and the mend."""

from __future__ import annotations

from typing import Any

import pytest

from quantbench.core.errors import ModelError
from quantbench.models import architecture
from quantbench.models.architecture import AS_LLAMA, FAMILIES

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 64, "max_position_embeddings": 32,
}  # fmt: skip
PARAMETERS = 2 * (4 * 24 * 24 + 3 * 24 * 40 + 2 * 24) + 2 * 64 * 24 + 24
UNKNOWN = "model type 'novel' is not known: counted as a Llama of these dimensions; its weights may take "
WINDOWS = {"model_type": "qwen3", "num_key_value_heads": 2, "layer_types": ["sliding_attention"] * 2}


def _refusal(body: dict[str, Any]) -> str:
    with pytest.raises(ModelError) as caught:
        architecture.read(body, "mine", "mine.json")
    return str(caught.value)


def test_an_unknown_type_with_llamas_keys_is_counted_and_says_so() -> None:
    read = architecture.read(
        {**LLAMA, "model_type": "novel", "is_encoder_decoder": False, "num_experts": None}, "mine", "m.json"
    )
    assert read.parameters == PARAMETERS
    assert (read.model_type, read.bounds) == ("novel", AS_LLAMA)
    assert read.note == f"{UNKNOWN}65% less to 25% more, the error of this count on other families"


def test_a_known_type_has_no_note() -> None:
    read = architecture.read(LLAMA, "mine", "mine.json")
    assert (read.parameters, read.note, read.config, read.bounds) == (PARAMETERS, "", LLAMA, (1, 1))


def test_a_checkpoint_that_is_quantized_already_says_so() -> None:
    quantized = {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    read = architecture.read(quantized, "mine", "mine.json")
    assert read.parameters == PARAMETERS
    assert read.note == "the checkpoint is already quantized (gptq): sizes in other methods are those of the unquantized model"
    unknown = architecture.read({**quantized, "model_type": "novel"}, "mine", "mine.json")
    assert unknown.note.startswith(UNKNOWN)
    assert unknown.note.endswith(f"; {read.note}")


def test_keys_that_are_absent_are_those_that_transformers_takes() -> None:
    assert "has 4 attention heads and 32 key-value heads" in _refusal({**LLAMA, "model_type": "qwen2"})
    null = architecture.read({**LLAMA, "model_type": "qwen2", "num_key_value_heads": None}, "mine", "mine.json")
    assert {each.heads for each in null.layers} == {4}


def test_a_checkpoint_whose_quantizer_is_not_named_says_so_too() -> None:
    read = architecture.read({**LLAMA, "quantization_config": {"load_in_4bit": True}}, "mine", "mine.json")
    assert read.note == "the checkpoint is already quantized: sizes in other methods are those of the unquantized model"


@pytest.mark.parametrize(("name", "most"), [("num_hidden_layers", 10**4), ("vocab_size", 10**12)])
def test_what_no_model_has_so_many_of_is_refused(name: str, most: int) -> None:
    for value in (most + 1, 10**320):
        assert f"mine.json has {name} above {most}, which no model has" in _refusal({**LLAMA, name: value})
    assert "above" not in _refusal({**LLAMA, name: 0})


def test_a_context_is_no_necessity() -> None:
    assert architecture.read({key: LLAMA[key] for key in LLAMA if key != "max_position_embeddings"}, "m", "m").context is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_local_experts": 8},
            "its num_local_experts says that it is not built like a Llama; known types are llama, mistral",
        ),
        ({"moe_num_experts": 8}, "its moe_num_experts says that it is not built like a Llama"),
        ({"vision_config": {"width": 8}}, "its vision_config says that it is not built like a Llama"),
        ({"kv_lora_rank": 512}, "its kv_lora_rank says that it is not built like a Llama"),
        ({"type_vocab_size": 2}, "its type_vocab_size says that it is not built like a Llama"),
        ({"add_cross_attention": True}, "its add_cross_attention says that it is not built like a Llama"),
        ({"is_encoder_decoder": True}, "its is_encoder_decoder says that it is not built like a Llama"),
        ({"text_config": {"hidden_size": 24}}, "model_type 'novel' with a text_config: a multimodal model"),
        ({"intermediate_size": None}, "its fields do not give its shapes as Llama's do (mine.json has no intermediate_size"),
        ({"layer_types": ["mamba"] * 2}, "(mine.json has layers of type 'mamba', whose cache quantbench does not know)"),
    ],
)
def test_an_unknown_type_that_is_no_llama_is_refused(changes: dict[str, Any], message: str) -> None:
    refusal = _refusal({**LLAMA, "model_type": "novel", **changes})
    assert refusal.startswith("mine.json has model_type 'novel'")
    assert message in refusal


@pytest.mark.parametrize("name", [key for key in LLAMA if key not in ("model_type", "max_position_embeddings")])
@pytest.mark.parametrize("value", ["24", 24.0, True, 0, -24, [24]])
def test_what_is_no_size_is_refused(name: str, value: object) -> None:
    assert _refusal({**LLAMA, name: value}) == f"mine.json has {name} {value!r}; it must be a whole number of at least 1"


@pytest.mark.parametrize("name", [key for key in LLAMA if key not in ("model_type", "max_position_embeddings")])
def test_what_is_missing_is_named(name: str) -> None:
    message = f"mine.json has no {name}, which its shapes depend on; give a complete config.json"
    assert _refusal({key: value for key, value in LLAMA.items() if key != name}) == message
    assert _refusal({**LLAMA, name: None}) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 25}, "has a hidden size of 25 and 4 attention heads"),
        ({"num_key_value_heads": 3}, "has 4 attention heads and 3 key-value heads; they must divide"),
        ({"head_dim": 7}, "has heads of 7 values, which cannot be rotated in pairs; they must be even"),
        ({"tie_word_embeddings": "yes"}, "has tie_word_embeddings 'yes'; it must be true or false"),
        ({"mlp_bias": 1}, "has mlp_bias 1; it must be true or false"),
        ({"sliding_window": 0}, "has sliding_window 0; it must be a whole number of at least 1"),
        ({"layer_types": "full_attention"}, "has layer_types 'full_attention'; it must be a list of strings"),
        ({"layer_types": ["full_attention"]}, "names 1 layer_types for 2 layers"),
        ({"layer_types": ["full_attention", "conv"]}, "has layers of type 'conv', whose cache quantbench does not know"),
        (WINDOWS, "has layers of sliding_attention but no sliding_window; add it"),
        ({"rope_scaling": "linear"}, "has rope_scaling 'linear'; it must be a table of keys"),
        ({"rope_scaling": {"rope_type": 3}}, "under rope_scaling has rope_type 3; it must be a string"),
        (
            {"rope_scaling": {"rope_type": "linear"}, "partial_rotary_factor": 1.5},
            "has partial_rotary_factor 1.5; it must be a number above 0",
        ),
        ({"model_type": "qwen3_moe"}, "has no num_local_experts or num_experts, which its shapes depend on"),
    ],
)
def test_what_no_model_can_be_is_refused(changes: dict[str, Any], message: str) -> None:
    assert message in _refusal({**LLAMA, **changes})


def test_mlp_only_layers_are_numbers() -> None:
    body = {**LLAMA, "model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 8, "num_experts_per_tok": 2}
    assert "has mlp_only_layers ['0']; it must be a list of whole numbers" in _refusal({**body, "mlp_only_layers": ["0"]})


def test_no_two_families_read_the_same_type() -> None:
    types = [each for known in FAMILIES for each in known.model_types]
    assert len(types) == len(set(types)) > 6
