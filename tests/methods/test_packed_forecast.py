"""Forecasts of GPTQ and AWQ: to the byte what loads, and to the byte the files that gptqmodel writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.scenario import Spec, Variant
from quantbench.methods import METHODS, Artifact, Settings
from quantbench.models.checkpoint import resolve
from quantbench.models.config import read_architecture
from quantbench.models.footprint import Weights
from quantbench.models.safetensors import safetensors_header
from quantbench.planning.planner import forecast
from quantbench.runtimes.gptqmodel import forecast as packed_forecast
from quantbench.runtimes.gptqmodel.forecast import FAMILIES, packed_tensors

LLAMA = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL: Mapping[str, Mapping[str, Any]] = {
    "llama": {**LLAMA, "attention_bias": True, "mlp_bias": True, "head_dim": 96},
    "mistral": LLAMA,
    "qwen2": {**LLAMA, "tie_word_embeddings": True},
    "qwen3": {**LLAMA, "head_dim": 128},
    "gemma": {**LLAMA, "head_dim": 128},
    "gemma2": {**LLAMA, "head_dim": 128},
    "gemma3_text": {**LLAMA, "head_dim": 128},
    "phi": {**LLAMA, "num_key_value_heads": 4},
    "opt": {"hidden_size": 256, "ffn_dim": 384, "num_attention_heads": 4, "word_embed_proj_dim": 256},
}
"""Of every family that is foretold: heads of a width of their own, biases, tied embeddings, norms inside attention, a buffer in
the model's dtype, an output layer with a bias, positions that are parameters."""

PROJECTED = {**SMALL["opt"], "word_embed_proj_dim": 128}
LOADED = [
    *((f"gptq/{each.name}", "llama") for each in METHODS["gptq"].precisions),
    *((f"awq/{each.name}", "llama") for each in METHODS["awq"].precisions),
    *((f"{method}/int4-g64", family) for method in FAMILIES for family in sorted(FAMILIES[method] - {"llama"})),
]


def foretold(variant: str, model: str | Path) -> Weights:
    method, _, precision = variant.partition("/")
    return forecast(read_architecture(str(model)), method, [precision])[precision]


def asked(variant: str, model: str | Path) -> tuple[Spec, Settings]:
    method, _, precision = variant.partition("/")
    spec = Spec(model=str(model), variant=Variant(method=method, precision=precision))
    return spec, Settings(checkpoint=resolve(str(model)), threads=1, context=64)


def loaded_bytes(variant: str, model: str | Path) -> int:
    with METHODS[variant.partition("/")[0]].open(*asked(variant, model)) as model_open:
        found = model_open.memory().weight_bytes
    assert isinstance(found, int)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a random model of a family, of two layers."""

    def build(family: str, options: Mapping[str, Any]) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        shared = {"vocab_size": 320, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = AutoConfig.for_model(family, **{**shared, "max_position_embeddings": 64, **options})
        folder = tmp_path_factory.mktemp(family)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        return folder

    return build


def pack(folder: Path, variant: str) -> None:
    """Put zeros of the shapes that auto-gptq and AutoAWQ document in place of each Linear of the blocks."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    method, _, precision = variant.partition("/")
    bits, group = int(precision[3]), int(precision.partition("-g")[2] or 128)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, module in model.model.named_modules():
        if type(module) is not torch.nn.Linear or ".layers." not in f".{name}":
            continue
        stem, outputs, row = f"model.{name}.", module.out_features, module.in_features
        del tensors[f"{stem}weight"]
        packed = (row * bits // 32, outputs) if method == "gptq" else (row, outputs * bits // 32)
        tensors[f"{stem}qweight"] = torch.zeros(packed, dtype=torch.int32)
        tensors[f"{stem}qzeros"] = torch.zeros(row // group, outputs * bits // 32, dtype=torch.int32)
        tensors[f"{stem}scales"] = torch.ones(row // group, outputs, dtype=torch.float16)
        if method == "gptq":
            tensors[f"{stem}g_idx"] = torch.arange(row, dtype=torch.int32) // group
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    layout = {"sym": True, "desc_act": False} if method == "gptq" else {"zero_point": True, "version": "gemm"}
    body = json.loads((folder / "config.json").read_text())
    body["quantization_config"] = {"quant_method": method, "bits": bits, "group_size": group, **layout}
    (folder / "config.json").write_text(json.dumps(body))


@pytest.fixture(scope="module")
def canary(users_cache: Path) -> Mapping[str, Artifact]:
    """The canary as gptqmodel makes it, by method, from the user's own cache."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(users_cache))
        for method in FAMILIES:
            preparer = METHODS[method].preparer
            assert preparer
            found[method] = preparer(*asked(f"{method}/int4-g128", "canary"))
    return found


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_canary_as_it_is_made_and_loaded(method: str, canary: Mapping[str, Artifact]) -> None:
    """The file, tensor by tensor in its order and in all, and what the loaded model takes."""
    artifact = canary[method]
    header = safetensors_header(artifact.path / "model.safetensors")
    stored = [(name, entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()]
    assert list(packed_tensors(method, "int4-g128", read_architecture("canary"))) == stored
    found = foretold(f"{method}/int4-g128", "canary")
    assert found.file_bytes == artifact.file_bytes
    assert found.weight_bytes == loaded_bytes(f"{method}/int4-g128", artifact.path)
    assert found.dtype == "fp16"
    assert "the output layer" in found.note


@pytest.mark.parametrize(("variant", "family"), LOADED, ids=lambda each: each)
def test_a_packed_model_loads_to_the_bytes_foretold(variant: str, family: str, built: Callable[..., Path]) -> None:
    folder = built(family, SMALL[family])
    expected = foretold(variant, folder).weight_bytes
    pack(folder, variant)
    assert loaded_bytes(variant, folder) == expected


def test_layers_outside_the_blocks_stay_as_they_are(built: Callable[..., Path]) -> None:
    """OPT with a narrower embedding: AWQ checkpoints of it do not load, and none is foretold."""
    folder = built("opt", PROJECTED)
    gptq, awq = (foretold(f"{method}/int4-g64", folder) for method in ("gptq", "awq"))
    pack(folder, "gptq/int4-g64")
    assert loaded_bytes("gptq/int4-g64", folder) == gptq.weight_bytes
    assert awq.weight_bytes is None
    assert awq.note.startswith("transformers takes model.decoder.project_")
    pack_again = built("opt", PROJECTED)
    pack(pack_again, "awq/int4-g64")
    with pytest.raises(ModelError, match="made 14 quantized layers of the 12"):
        loaded_bytes("awq/int4-g64", pack_again)


@pytest.mark.parametrize("shard_bytes", [10**9, 200_000, 60_000])
def test_several_files_are_as_the_quantizer_itself_writes_them(
    shard_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the writer of gptqmodel, given the same tensors; some are larger than a file of 60,000 bytes may be."""
    import torch
    from gptqmodel.utils.model import TensorSource, streaming_state_dict_to_shards

    dtypes = {"I32": torch.int32, "F16": torch.float16, "BF16": torch.bfloat16}
    sources = {
        name: TensorSource(name=name, torch_dtype=dtypes[dtype], shape=shape, source=torch.zeros(shape, dtype=dtypes[dtype]))
        for name, dtype, shape in packed_tensors("gptq", "int3", read_architecture("canary"))
    }
    names, _, total = streaming_state_dict_to_shards(
        sources, str(tmp_path), "model", "model.safetensors", {"format": "pt"}, shard_bytes
    )
    monkeypatch.setattr(packed_forecast, "SHARD_BYTES", shard_bytes)
    assert foretold("gptq/int3", "canary").file_bytes == total == sum((tmp_path / name).stat().st_size for name in names)
    assert (len(names) > 1) == (shard_bytes < 10**9)


@pytest.mark.parametrize(
    ("variant", "hidden", "ffn"),
    [("gptq/int4-g128", 192, 384), ("awq/int4-g64", 256, 96), ("gptq/int4-g32", 80, 128), ("awq/int4-g32", 256, 96)],
)
def test_what_is_refused_is_not_foretold(variant: str, hidden: int, ffn: int, built: Callable[..., Path]) -> None:
    """And for the same reason; the layer that is named is the first one, which a file's order need not be."""
    folder = built("llama", {**LLAMA, "hidden_size": hidden, "intermediate_size": ffn})
    preparer = METHODS[variant.partition("/")[0]].preparer
    assert preparer
    with pytest.raises(UnsupportedError) as caught:
        preparer(*asked(variant, folder))
    found = foretold(variant, folder)
    assert (found.weight_bytes, found.file_bytes) == (None, None)
    assert _unnamed(found.note) == _unnamed(str(caught.value))


@pytest.mark.parametrize("model_type", ["mixtral", "gpt2", "falcon", "gpt_neox", "phi3", "unheard"])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_family_that_does_not_load_again_is_not_foretold(method: str, model_type: str) -> None:
    """Tried with each but the last: fused experts, Conv1D, subclasses of Linear, other names."""
    architecture = replace(read_architecture("llama-2-7b"), model_type=model_type)
    for found in forecast(architecture, method, [each.name for each in METHODS[method].precisions]).values():
        assert found.weight_bytes is None
        assert found.note == (
            f"gptqmodel is not known to write loadable {method.upper()} of model type {model_type!r}; use another method"
        )


def test_neither_a_gguf_file_nor_what_is_served_is_foretold(tmp_path: Path) -> None:
    architecture = read_architecture("canary")
    for method in ("gptq", "awq"):
        (found,) = forecast(replace(architecture, gguf=tmp_path / "a.gguf"), method, ["int4-g128"]).values()
        assert found.weight_bytes is None
        assert "cannot open a .gguf file" in found.note
    assert forecast(architecture, "server", ["as-served"])["as-served"].weight_bytes is None
    assert forecast(architecture, "server", ["as-served"])["as-served"].note.startswith("the server holds the weights")


def _unnamed(reason: str) -> str:
    return " ".join(word for word in reason.split() if not word.startswith("model.layers."))
