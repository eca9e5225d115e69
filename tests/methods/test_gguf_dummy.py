"""GGUF files of dummies: as large as forecast, with the header that llama.cpp's converter writes, and nothing converted."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from quantbench.core import children
from quantbench.core.cache import file_sha256
from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.scenario import Spec, Variant
from quantbench.core.units import format_bytes
from quantbench.methods import METHODS, Artifact, Settings, gguf
from quantbench.models import MODELS
from quantbench.models.config import read_architecture
from quantbench.models.footprint import Weights
from quantbench.runtimes.llama_cpp import dummy as gguf_dummy
from quantbench.runtimes.llama_cpp import files, imatrix
from quantbench.runtimes.llama_cpp.converter import converter
from quantbench.runtimes.llama_cpp.dummy import random_blocks
from quantbench.runtimes.llama_cpp.files import file_precision, quantized_file, tensor_bytes
from quantbench.runtimes.llama_cpp.model import library

from .conftest import SHAPE

METHOD = METHODS["gguf"]
VOCABULARY = 2304
"""More than the canary's tokenizer has."""

LLAMA3 = {
    "vocab_size": VOCABULARY,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}  # fmt: skip
LONGROPE: dict[str, Any] = {
    "pad_token_id": 0,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32,
        "long_factor": [1.0 + number / 8 for number in range(32)], "short_factor": [1.0 + number / 64 for number in range(32)],
    },
}  # fmt: skip
EXPERTS = {"num_local_experts": 8}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True}, "gemma2": {"head_dim": 64, "pad_token_id": 0},
    "phi3": LONGROPE, "mixtral": EXPERTS, "gpt2": {"n_ctx": 64, "n_embd": 256, "n_layer": 2, "n_head": 4},
}  # fmt: skip
"""GPT-2's vocabulary is of another kind, with merges, which the canary's tokenizer has not."""

TYPES = {
    "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4", "Q3_K", "IQ3_S", "IQ3_XXS",
    "Q2_K", "TQ2_0", "TQ1_0", "BF16", "F16", "F32",
}  # fmt: skip

Make = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory, users_cache: Path) -> Iterator[Path]:
    """A cache of the module's own, and the user's converter: what stands in a cache already would be tested as it was made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(users_cache))
        patch.setenv("QUANTBENCH_LLAMA_CPP", str(converter().parent))
        yield tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _use(own_cache: Path, warm_children: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTBENCH_CACHE", str(own_cache))


@pytest.fixture(scope="module")
def dummy(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The folder of a dummy: a configuration, the shapes that transformers makes of it, the canary's tokenizer, no weights."""
    made: dict[str, Checkpoint] = {}

    def make(family: str, **options: Any) -> Checkpoint:
        if (key := f"{family} {options}") not in made:
            made[key] = write_dummy(tmp_path_factory.mktemp(family), family, options)
        return made[key]

    return make


@pytest.fixture
def convert(
    small_checkpoint: Callable[..., Checkpoint], users_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """The GGUF file of a model with weights, converted and quantized by llama.cpp; kept in the user's cache."""

    def make(precision: str, family: str, **options: Any) -> Path:
        monkeypatch.setenv("QUANTBENCH_CACHE", str(users_cache))
        monkeypatch.delenv("QUANTBENCH_LLAMA_CPP")
        return quantized_file(small_checkpoint(family, **options), precision).path

    return make


def write_dummy(folder: Path, family: str, options: Mapping[str, Any]) -> Checkpoint:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**SHAPE, **options})
    with torch.device("meta"):
        shapes = {name: list(each.shape) for name, each in AutoModelForCausalLM.from_config(config).named_parameters()}
    body = json.dumps({**config.to_diff_dict(), "model_type": family})
    (folder / "config.json").write_text(body)
    (folder / "shapes.json").write_text(json.dumps(shapes))
    for path in MODELS["canary"].folder().glob("tokenizer*"):
        shutil.copy(path, folder)
    content = hashlib.sha256(body.encode()).hexdigest()
    return Checkpoint(name="dummy:x", kind="hf", path=folder, revision="seed 0", content_hash=content, random_weights=True)


def spec(precision: str) -> Spec:
    return Spec(model="dummy:x", variant=Variant(method="gguf", precision=precision))


def settings(checkpoint: Checkpoint) -> Settings:
    return Settings(checkpoint=checkpoint, threads=1, context=64)


def prepared(checkpoint: Checkpoint, precision: str) -> Artifact:
    assert METHOD.preparer
    return METHOD.preparer(spec(precision), settings(checkpoint))


def written(checkpoint: Checkpoint, precision: str) -> Artifact:
    """The same, and not remembered from a test before."""
    return gguf_dummy.dummy_file(checkpoint, precision, gguf._FILES)


def forecast(checkpoint: Checkpoint, precision: str) -> Weights:
    assert METHOD.forecaster
    return METHOD.forecaster(read_architecture(str(checkpoint.path)), [precision])[precision]


@cache
def read(path: Path) -> GGUFReader:
    """A file, read once: the package takes a third of a second for a vocabulary."""
    return GGUFReader(path)


def header(path: Path) -> dict[str, Any]:
    """All metadata but the name, which says that the weights are random."""
    fields = read(path).fields
    left_out = ("GGUF.tensor_count", "GGUF.kv_count", "GGUF.version", "general.name")
    return {name: field.contents() for name, field in fields.items() if name not in left_out}


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    found = read(path).tensors
    return {each.name: (each.tensor_type.name, tuple(int(size) for size in each.shape)) for each in found}


def values(path: Path, name: str) -> Any:
    from gguf import dequantize

    (found,) = (each for each in read(path).tensors if each.name == name)
    return np.array(dequantize(found.data, found.tensor_type))


def runs(checkpoint: Checkpoint, precision: str) -> int:
    """Let llama.cpp load and run the file; the bytes of the weights as it counts them."""
    with METHOD.open(spec(precision), settings(checkpoint)) as model:
        logits = np.concatenate([chunk.copy() for chunk in model.score([1, 300, 400])])
        answer = list(model.generate([1, 300, 400], 4))
        assert np.isfinite(logits).all()
        assert logits.std(axis=1).min() > 1e-3
        assert len(answer) == 4
        assert max(answer) < logits.shape[1]
        return model.memory().weight_bytes


TRIED = (
    "f32", "f16", "bf16", "q8_0", "q5_k_m", "q4_0", "q4_k_m", "q3_k_m", "q2_k", "iq4_nl", "iq4_xs", "iq3_xs", "tq2_0",
    "q6_k-imat",
)  # fmt: skip
"""One of each kind: all go through the same calls, and ggml takes seconds for a type of one or two bits with a table."""


@pytest.mark.parametrize("precision", TRIED)
def test_a_precision_is_as_large_as_forecast_and_runs(precision: str, dummy: Make) -> None:
    checkpoint = dummy("llama", **LLAMA3)

    artifact = prepared(checkpoint, precision)

    assert tensor_bytes(artifact.path) == forecast(checkpoint, precision).weight_bytes == runs(checkpoint, precision)
    assert file_precision(artifact.path) == precision.removesuffix("-imat")
    assert (artifact.file_bytes, artifact.quantize_s) == (artifact.path.stat().st_size, None)
    assert not list(artifact.path.parent.glob("*.safetensors"))
    assert len(header(artifact.path)["tokenizer.ggml.tokens"]) == VOCABULARY


@pytest.mark.parametrize(
    ("family", "precision"),
    [*((family, "q4_k_m") for family in FAMILIES), ("mixtral", "q8_0"), ("mixtral", "mxfp4_moe")],
)
def test_other_architectures_are_as_large_as_forecast_and_run(family: str, precision: str, dummy: Make) -> None:
    checkpoint = dummy(family, **FAMILIES[family])

    size = tensor_bytes(prepared(checkpoint, precision).path)

    assert size == forecast(checkpoint, precision).weight_bytes == runs(checkpoint, precision)


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        ("llama", "q4_k_m"), ("llama", "f16"), ("qwen2", "q8_0"), ("phi3", "q4_k_m"), ("mixtral", "q4_k_m"), ("gemma2", "q8_0"),
    ],
)  # fmt: skip
def test_header_and_tensors_are_those_of_a_converted_model(
    family: str, precision: str, dummy: Make, convert: Callable[..., Path]
) -> None:
    """Key by key and value by value, and with the factors of rotary scaling that the converter computes."""
    options = {"llama": LLAMA3, **FAMILIES}[family]
    made = prepared(dummy(family, **options), precision).path

    converted = convert(precision, family, **options)

    assert header(made) == header(converted)
    assert tensors(made) == tensors(converted)
    computed = [name for name in tensors(converted) if name.startswith("rope_")]
    assert len(computed) == {"llama": 1, "phi3": 2}.get(family, 0)
    for name in computed:
        np.testing.assert_array_equal(values(made, name), values(converted, name))
        assert values(converted, name).std() > 0
    for name, (kind, shape) in tensors(converted).items():
        if len(shape) == 1 and name not in computed:  # of a model that nobody trained: norms of one, biases of nothing
            np.testing.assert_array_equal(values(made, name), values(converted, name))
            assert kind == "F32"


def test_a_second_writing_converts_quantizes_and_calibrates_nothing_and_is_the_same_byte_for_byte(
    dummy: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no weight to convert; neither the script nor llama.cpp's quantizer nor a calibration runs."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("called")

    started = []
    start = children.run

    def counted(command: Sequence[str], task: str, **how: Any) -> None:
        started.append(command)
        start(command, task, **how)

    checkpoint = dummy("llama", **LLAMA3)
    first = prepared(checkpoint, "q6_k-imat").path
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / "other"))
    random_blocks.cache_clear()
    monkeypatch.setattr(library(), "llama_model_quantize", never)
    monkeypatch.setattr(files, "_converted", never)
    monkeypatch.setattr(imatrix, "importance_matrix", never)
    monkeypatch.setattr(children, "run", counted)
    monkeypatch.setattr(subprocess, "Popen", never)

    again = written(checkpoint, "q6_k-imat").path

    assert again != first
    assert file_sha256(again) == file_sha256(first)
    assert sorted(command[3].rpartition(".")[2] for command in started) == ["dry_run", "header"]
    assert {path.suffix for path in checkpoint.path.iterdir()} == {".json", ".model"}


def test_the_converter_is_asked_once_for_all_precisions(dummy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = dummy("llama", **LLAMA3)
    prepared(checkpoint, "q8_0")
    monkeypatch.setattr(gguf_dummy, "call", lambda *_: pytest.fail("asked again"))

    other = written(checkpoint, "q5_k_s")

    assert file_precision(other.path) == "q5_k_s"


def test_calibration_does_not_stand_in_a_dummys_key() -> None:
    assert METHOD.recipe(spec("iq2_m")) == {}
    real = Spec(model="canary", variant=Variant(method="gguf", precision="iq2_m"))
    assert set(METHOD.recipe(real)) == {"calibration"}


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_blocks_stand_for_normal_weights(kind: str) -> None:
    """Unpacked by the gguf package, which has no code in common with ggml: the deviation asked for, give or take the type's."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    packed = random_blocks(kind)
    stored = {"F32": np.float32, "F16": np.float16}.get(kind, np.uint8)

    weights = dequantize(np.frombuffer(packed, dtype=stored).reshape(4093, -1), GGMLQuantizationType[kind])

    assert weights.size == len(packed) // size * block
    assert np.isfinite(weights).all()
    assert float(weights.std()) == pytest.approx(0.02, rel=0.1)
    assert abs(float(weights.mean())) < 1e-4


def test_tensors_and_their_rows_differ(dummy: Make) -> None:
    path = prepared(dummy("llama", **LLAMA3), "q4_0").path
    embedding, up, gate = (values(path, name) for name in ("token_embd.weight", "blk.0.ffn_up.weight", "blk.0.ffn_gate.weight"))

    assert up.shape == gate.shape
    assert not np.array_equal(up, gate)
    assert len(np.unique(embedding, axis=0)) == VOCABULARY


def test_it_is_saved_as_a_real_model_is(dummy: Make, tmp_path: Path) -> None:
    checkpoint = dummy("llama", **LLAMA3)
    assert METHOD.saver

    METHOD.saver(spec("q4_0"), settings(checkpoint), tmp_path)

    (saved,) = tmp_path.iterdir()
    assert saved.name == "model-q4_0.gguf"
    assert file_sha256(saved) == file_sha256(prepared(checkpoint, "q4_0").path)


def test_a_disk_without_room_is_told_with_the_arithmetic(dummy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = dummy("llama", vocab_size=VOCABULARY + 64)
    expected = forecast(checkpoint, "q5_0").weight_bytes
    assert expected
    assert expected > 1_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))

    with pytest.raises(ModelError) as caught:
        written(checkpoint, "q5_0")

    takes = f"the q5_0 file of dummy:x takes {format_bytes(expected)} ({expected:,} bytes)"
    room = "the cache's disk has only 1 MB (1,000,000 bytes) free; set QUANTBENCH_CACHE"
    assert str(caught.value).startswith(f"{takes} and {room}")


def test_shapes_that_llama_cpp_refuses_are_refused_as_they_are_planned(dummy: Make) -> None:
    checkpoint = dummy("llama", hidden_size=96, num_attention_heads=4, intermediate_size=160)

    with pytest.raises(UnsupportedError, match=r"llama\.cpp cannot make q1_0 at this model's row sizes") as caught:
        prepared(checkpoint, "q1_0")

    assert str(caught.value) == forecast(checkpoint, "q1_0").note


def test_a_dummys_fallbacks_are_those_of_the_plan(dummy: Make) -> None:
    checkpoint = dummy("llama", hidden_size=96, num_attention_heads=4, intermediate_size=160)
    found = forecast(checkpoint, "q4_k_m")

    made = prepared(checkpoint, "q4_k_m")

    tensors = read(made.path).tensors
    fallen = [each for each in tensors if len(each.shape) > 1 and each.name != "output.weight"]  # rows of 96 and 160
    assert made.facts == {
        "fallback_tensors": str(len(fallen)),
        "fallback_bytes": str(sum(int(each.n_bytes) for each in fallen)),
    }
    assert f"{len(fallen)} of {len(tensors)} tensors" in found.note
    assert found.weight_bytes == sum(int(each.n_bytes) for each in tensors)


def test_tensors_that_quantbench_counts_otherwise_than_transformers_are_refused(dummy: Make, tmp_path: Path) -> None:
    shutil.copytree(dummy("llama", vocab_size=VOCABULARY).path, tmp_path / "odd")
    shapes = json.loads((tmp_path / "odd" / "shapes.json").read_text())
    (tmp_path / "odd" / "shapes.json").write_text(json.dumps({**shapes, "model.layers.0.extra.weight": [256]}))
    odd = Checkpoint(name="odd", kind="hf", path=tmp_path / "odd", revision="", content_hash="odd", random_weights=True)

    with pytest.raises(UnsupportedError, match=r"does not know the tensors of model type 'llama' as .* ask for torch"):
        prepared(odd, "q8_0")


def test_a_configuration_that_the_converter_does_not_take_is_one_sentence(dummy: Make) -> None:
    """GPT-2's converter wants ``n_ctx``, which transformers no longer writes."""
    options = {name: value for name, value in FAMILIES["gpt2"].items() if name != "n_ctx"}

    with pytest.raises(ModelError) as caught:
        prepared(dummy("gpt2", **options), "q8_0")

    assert str(caught.value) == (
        "llama.cpp's converter does not take the configuration of dummy:x (KeyError: 'n_ctx'); ask for torch"
    )


def test_a_converter_that_is_killed_ran_out_of_memory(dummy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = dummy("llama", vocab_size=VOCABULARY + 64)
    kills, ours = iter(range(9)), children.python_module

    def killed(module: str, *arguments: str) -> list[str]:
        return ["sh", "-c", "kill -9 $$"] if module.endswith("header") else ours(module, *arguments)

    monkeypatch.setattr(children, "oom_kills", lambda: next(kills))
    monkeypatch.setattr(children, "python_module", killed)

    with pytest.raises(MemoryError, match=r"^llama\.cpp's converter, at the header of dummy:x, ran out of memory; use a"):
        written(checkpoint, "q8_0")


def test_the_anchors_file_is_written_alike(dummy: Make) -> None:
    """What a variant's rounds alternate with is the unquantized dummy."""
    method, _, precision = METHOD.anchor.partition("/")
    checkpoint = dummy("llama", **LLAMA3)

    artifact = prepared(checkpoint, precision)

    assert method == "gguf"
    assert {kind for kind, _ in tensors(artifact.path).values()} == {"F16", "F32"}
