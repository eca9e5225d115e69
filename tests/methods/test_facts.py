"""What methods find out of a model: where its weights are, and what a decode step reads of weights and cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import DynamicCache, GPT2Config, LlamaConfig, MistralConfig, MixtralConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from quantbench.runtimes.llama_cpp.facts import found_device as found_by_llama_cpp
from quantbench.runtimes.llama_cpp.probe import write_model
from quantbench.runtimes.transformers.model import TransformersModel, found_device

if TYPE_CHECKING:
    from pathlib import Path

    from quantbench.core.trace import WeightMemory

WIDTH, VOCABULARY, LAYERS = 32, 64, 3
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
MISTRAL: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "sliding_window": None}


def _model(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def _memory(model: Any) -> WeightMemory:
    return TransformersModel(model, "test").memory()


def _weight_bytes(model: Any) -> int:
    return sum(each.numel() * each.element_size() for each in {*model.parameters(), *model.buffers()})


def _cache_bytes(model: Any, positions: int) -> int:
    """What transformers' own cache holds after a pass."""
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=torch.zeros((1, positions), dtype=torch.long), past_key_values=cache, use_cache=True)
    return sum(each.numel() * each.element_size() for layer in cache.layers for each in (layer.keys, layer.values))


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (LlamaConfig(**SIZES, num_key_value_heads=2), torch.float32),
        (LlamaConfig(**SIZES, num_key_value_heads=1, head_dim=16), torch.bfloat16),
        (MistralConfig(**MISTRAL), torch.float32),
    ],
    ids=["grouped", "wide heads, bf16", "mistral"],
)
def test_a_step_reads_all_weights_but_for_other_rows_of_the_input_embedding(config: Any, dtype: torch.dtype) -> None:
    model = _model(config, dtype)
    found = _memory(model)
    assert found.step_bytes == _weight_bytes(model) - (VOCABULARY - 1) * WIDTH * dtype.itemsize
    assert found.cache_position_bytes
    assert found.cache_position_bytes * 7 == _cache_bytes(model, 7)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES, tie_word_embeddings=True),
        GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=64),
    ],
    ids=["llama", "gpt2"],
)
def test_a_shared_embedding_is_read_whole_by_the_output_layer(config: Any) -> None:
    model = _model(config)
    found = _memory(model)
    assert found.step_bytes == found.weight_bytes == _weight_bytes(model)
    assert found.cache_position_bytes
    assert found.cache_position_bytes * 5 == _cache_bytes(model, 5)


def test_of_experts_and_of_windows_nothing_is_said() -> None:
    experts = _memory(_model(MixtralConfig(**MISTRAL, num_local_experts=4)))
    assert experts.step_bytes is None
    assert experts.weight_bytes > 0
    assert _memory(_model(MistralConfig(**{**MISTRAL, "sliding_window": 8}))).cache_position_bytes is None


def test_llama_cpp_counts_the_same_of_a_file(tmp_path: Path) -> None:
    from quantbench.runtimes.llama_cpp.model import open_gguf_file

    path = tmp_path / "model.gguf"
    write_model(path)  # one layer, 256 wide, 4 heads, Q8_0 matrices: 34 bytes for 32 values
    with open_gguf_file(path, threads=1, context=64, device="cpu", extra_buffers=False) as model:
        found = model.memory()
        facts = model.facts
    row = 256 // 32 * 34
    assert found.weight_bytes == 9 * 256 * row + 3 * 256 * 4
    assert found.step_bytes == found.weight_bytes - 255 * row
    assert found.cache_position_bytes == 2 * 256 * 2
    assert (facts["device"], facts["kernel"]) == ("cpu", "llama.cpp-cpu-plain-buffers")


def test_places_of_parameters_and_of_saved_buffers_count() -> None:
    module = torch.nn.BatchNorm1d(4)
    assert found_device(module) == "cpu"
    module.running_mean = module.running_mean.to("meta")
    assert found_device(module) == "cpu+meta"
    other = torch.nn.Linear(2, 2)
    other.register_buffer("scratch", torch.empty(2, device="meta"), persistent=False)
    assert found_device(other) == "cpu"
    other.weight = torch.nn.Parameter(torch.empty(2, 2, device="meta"))
    assert found_device(other) == "cpu+meta"
    assert found_device(torch.nn.ReLU()) == ""


def test_an_offloaded_parameter_shows_in_the_facts() -> None:
    model = _model(LlamaConfig(**SIZES))
    assert TransformersModel(model, "test").facts["device"] == "cpu"
    model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCABULARY, WIDTH, device="meta"))
    assert TransformersModel(model, "test").facts["device"] == "cpu+meta"


def _line(name: str, mebibytes: float) -> str:
    return f"load_tensors: {name:>12s} model buffer size = {mebibytes:8.2f} MiB\n"


@pytest.mark.parametrize(
    ("sizes", "device"),
    [
        ({"CPU": 5.0}, "cpu"),
        ({"CPU_Mapped": 2.0, "AMX": 3.0}, "cpu"),
        ({}, "cpu"),
        ({"CUDA0": 5.0, "CPU": 0.07}, "cuda:0"),
        ({"CUDA1": 5.0, "CUDA_Host": 0.07}, "cuda:1"),
        ({"CUDA0": 5.0, "CUDA1": 5.0, "CPU": 0.07}, "cuda:0+cuda:1"),
        ({"CUDA0": 5.0, "CPU": 4.0}, "cpu+cuda:0"),
        ({"Vulkan0": 5.0, "CPU": 0.07}, "vulkan0"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_llama_cpps_log_says_where_layers_are(sizes: dict[str, float], device: str, tmp_path: Path) -> None:
    """The input embedding, 0.07 MiB here, always stays on the host."""
    path = tmp_path / "model.gguf"
    write_model(path)
    assert found_by_llama_cpp(["something else\n", *(_line(*each) for each in sizes.items())], path) == device
