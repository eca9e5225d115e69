"""Forecasts of weights are, to the byte, what the methods hold once they have loaded a model, and refuse what these refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantbench.core.errors import UnsupportedError
from quantbench.core.scenario import Conditions, Spec, Variant
from quantbench.methods import METHODS, LoadedModel, Settings, qat
from quantbench.models.architecture import Architecture, Tensor
from quantbench.models.checkpoint import resolve
from quantbench.models.config import read_architecture
from quantbench.models.footprint import Weights
from quantbench.runtimes.transformers.distill import Training

METHODS_HERE = ("torch", "torch-dynamic", "bitsandbytes", "torchao", "qat", "prune")
OFFERED = [f"{name}/{each.name}" for name in METHODS_HERE for each in METHODS[name].precisions]
CUDA_ONLY = ("torchao/int4-wo", "torchao/int4-hqq", "torchao/fp8", "prune/2-4-sparse")
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

SMALL: Mapping[str, Mapping[str, Any]] = {
    "qwen2": {
        "hidden_size": 96, "intermediate_size": 200, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20,
        "tie_word_embeddings": True,
    },
    "llama": {
        "hidden_size": 99, "intermediate_size": 203, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 22,
        "attention_bias": True, "mlp_bias": True,
    },
    "mixtral": {
        "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
    },
    "gemma": {
        "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 24,
    },
    "opt": {
        "hidden_size": 64, "ffn_dim": 100, "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 64,
    },
    "falcon": {"hidden_size": 64, "num_attention_heads": 4},
    "gpt2": {"n_embd": 48, "n_head": 4, "n_positions": 64},
}  # fmt: skip
"""Tied embeddings, biases, grouped heads of a width of their own, rows and weights that no block divides; fused experts, a
buffer in the model's dtype, Linear layers outside the blocks, a Linear class that is not torch's, and Conv1D."""

ALL_PRUNED = [each for each in OFFERED if each.startswith("prune/")]
IN_GROUPS = [f"torchao/{each}" for each in ("intx4-wo", "intx4-hqq", "mxfp8", "mxfp4", "nvfp4-wo")]
REFUSED: Mapping[str, list[str]] = {
    "qwen2": IN_GROUPS,
    "llama": [*IN_GROUPS, "prune/2-4"],
    "mixtral": ALL_PRUNED,
    "gemma": ["torchao/nvfp4-wo"],
    "opt": IN_GROUPS,
    "falcon": [each for each in OFFERED if each.startswith("bitsandbytes/") or (each in ALL_PRUNED and "+" in each)],
    "gpt2": [*ALL_PRUNED, *(each for each in OFFERED if each.startswith("torchao/"))],
}
LOADED = [
    (model, each)
    for model in SMALL
    for each in OFFERED
    if each not in (*CUDA_ONLY, *REFUSED[model]) and not each.startswith("qat/")  # which trains on text
]
LEFT_OUT = [(model, each) for model, refused in REFUSED.items() for each in refused if each not in CUDA_ONLY]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """A checkpoint folder of two layers and random weights for each model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    folders = {}
    for kind, dimensions in SMALL.items():
        config = AutoConfig.for_model(kind, num_hidden_layers=2, vocab_size=2051, bos_token_id=0, eos_token_id=1, **dimensions)
        folders[kind] = str(tmp_path_factory.mktemp(kind))
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folders[kind])
    return folders


def opened(model: str, variant: str) -> AbstractContextManager[LoadedModel]:
    method, _, precision = variant.partition("/")
    spec = Spec(model=model, variant=Variant(method=method, precision=precision), conditions=Conditions())
    return METHODS[method].open(spec, Settings(checkpoint=resolve(model), threads=1, context=64))


def forecast(architecture: Architecture, variant: str) -> Weights:
    method, _, precision = variant.partition("/")
    forecaster = METHODS[method].forecaster
    assert forecaster
    return forecaster(architecture, [precision])[precision]


def check_loaded(model: str, variant: str) -> None:
    weights = forecast(read_architecture(model), variant)
    with opened(model, variant) as loaded:
        assert weights.weight_bytes == loaded.memory().weight_bytes
        assert DTYPES[weights.dtype] == loaded.facts["kv_dtype"]


@pytest.mark.usefixtures("artifacts")
@pytest.mark.parametrize("variant", [each for each in OFFERED if each not in CUDA_ONLY])
def test_the_canary_takes_what_was_forecast(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Training(rate=4e-6, steps=4, batch=1, length=16, warmup=2)
    monkeypatch.setattr(qat, "TRAINING", dict.fromkeys(("int8", "int4"), few))  # training changes no byte count
    check_loaded("canary", variant)


@pytest.mark.parametrize(("kind", "variant"), LOADED, ids=[f"{kind}-{each}" for kind, each in LOADED])
def test_odd_models_take_what_was_forecast(small: Mapping[str, str], kind: str, variant: str) -> None:
    check_loaded(small[kind], variant)


@pytest.mark.parametrize(("kind", "variant"), LEFT_OUT, ids=[f"{kind}-{each}" for kind, each in LEFT_OUT])
def test_what_a_method_refuses_has_its_reason_in_the_forecast(small: Mapping[str, str], kind: str, variant: str) -> None:
    weights = forecast(read_architecture(small[kind]), variant)
    assert weights.weight_bytes is None
    with pytest.raises(UnsupportedError) as refusal, opened(small[kind], variant):
        pass
    assert weights.note == str(refusal.value)


def one_layer(outputs: int, inputs: int) -> Architecture:
    """A model of an embedding of 10 values and one Linear layer."""
    canary = read_architecture("canary")
    layer = Tensor("model.layers.0.mlp.up_proj.weight", (outputs, inputs), "linear")
    return replace(canary, tensors=(Tensor("model.embed_tokens.weight", (2, 5), "embedding"), layer), buffers=())


def torchao_bytes(precision: str, outputs: int, inputs: int, device: str) -> int:
    """What torchao's own tensor of a Linear layer holds."""
    from torch import bfloat16, nn
    from torchao.quantization import quantize_

    from quantbench.runtimes.transformers.torchao import base_config

    layer = nn.Linear(inputs, outputs, bias=False, dtype=bfloat16, device=device)
    quantize_(layer, base_config(precision))
    names, _ = layer.weight.__tensor_flatten__()
    return sum(getattr(layer.weight, name).numel() * getattr(layer.weight, name).itemsize for name in names)


@pytest.mark.parametrize(("outputs", "inputs"), [(4096, 1024), (256, 3584), (20, 96), (8, 32)])
def test_int4_tiles_of_torchao_without_the_gpu(outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device torch tells the shapes that its CUDA kernel packs into."""
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    held = torchao_bytes("int4-wo", outputs, inputs, "meta")
    weights = forecast(one_layer(outputs, inputs), "torchao/int4-wo")
    assert weights.weight_bytes == 2 * 10 + held
    assert ("padded" in weights.note) == ((outputs, inputs) != (4096, 1024))


@pytest.mark.parametrize(("outputs", "inputs"), [(64, 48), (16, 4096)])
def test_fp8_of_torchao_without_the_gpu(outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantizing needs no kernel that the CPU lacks, multiplying does."""
    from torchao.quantization import quant_api

    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda _: None)
    held = torchao_bytes("fp8", outputs, inputs, "cpu")
    assert forecast(one_layer(outputs, inputs), "torchao/fp8").weight_bytes == 2 * 10 + held


def test_fp8_passes_by_what_its_kernels_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torchao.quantization import quant_api, quantize_

    from quantbench.runtimes.transformers.torchao import base_config

    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda _: None)
    layer = torch.nn.Linear(48, 72, bias=False, dtype=torch.bfloat16)
    quantize_(layer, base_config("fp8"))
    assert not hasattr(layer.weight, "__tensor_flatten__")

    refused = forecast(one_layer(72, 48), "torchao/fp8")
    assert refused.weight_bytes is None
    assert "multiples of 16" in refused.note

    both = one_layer(72, 48)
    both = replace(both, tensors=(*both.tensors, Tensor("model.layers.0.mlp.down_proj.weight", (48, 80), "linear")))
    partly = forecast(both, "torchao/fp8")
    assert partly.weight_bytes == 2 * (10 + 72 * 48) + 48 * 80 + 4
    assert "Linear layers" in partly.note


def test_sparse_kernels_are_not_guessed_at() -> None:
    weights = forecast(read_architecture("canary"), "prune/2-4-sparse")
    assert weights.weight_bytes is None
    assert "CUDA" in weights.note


@pytest.mark.parametrize(
    ("kind", "variant", "said"),
    [
        ("qwen2", "bitsandbytes/nf4", "the output layer, tied to the embedding, stays bf16"),
        ("llama", "bitsandbytes/int8", "the output layer stays fp16"),
        ("qwen2", "torch-dynamic/int8", "INT8 copy of the embedding"),
        ("mixtral", "bitsandbytes/nf4", "fused experts (34% of the parameters) stay bf16"),
        ("falcon", "torch-dynamic/int8", "Linear layers (40% of the parameters) stay fp32"),
        ("gpt2", "torch-dynamic/int8", "Conv1D layers (35% of the parameters) stay fp32"),
    ],
)
def test_notes_name_what_stays_unquantized(small: Mapping[str, str], kind: str, variant: str, said: str) -> None:
    assert said in forecast(read_architecture(small[kind]), variant).note


def test_forecasts_import_no_library() -> None:
    script = (
        "import json, sys\n"
        "from quantbench.methods import METHODS\n"
        "from quantbench.models.config import read_architecture\n"
        "model = read_architecture('llama-2-7b')\n"
        f"for method in map(METHODS.__getitem__, {METHODS_HERE!r}):\n"
        "    found = method.forecaster(model, [each.name for each in method.precisions])\n"
        "    assert len(found) == len(method.precisions)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=60
    )
    heavy = {"torch", "transformers", "bitsandbytes", "torchao", "numpy", "pandas", "pyarrow"}
    assert heavy.isdisjoint(json.loads(done.stdout))
