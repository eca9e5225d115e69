"""GPTQ and AWQ of dummies: written as gptqmodel would, to the byte of the header, and never quantized."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.scenario import Spec, Variant
from quantbench.methods import METHODS, Artifact, LoadedModel, Settings
from quantbench.models.checkpoint import resolve
from quantbench.models.config import read_architecture
from quantbench.models.safetensors import safetensors_header, weight_files
from quantbench.planning.planner import forecast
from quantbench.runtimes.gptqmodel import dummy as packed_dummy
from quantbench.runtimes.gptqmodel import forecast as packed_forecast
from quantbench.runtimes.gptqmodel import quantize
from quantbench.runtimes.transformers import calibration

Array = NDArray[Any]
LLAMA: Mapping[str, Any] = {
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": LLAMA,
    "qwen2": {**LLAMA, "tie_word_embeddings": True},
    "opt": {**LLAMA, "ffn_dim": 384, "word_embed_proj_dim": 256},
}
"""Plain; with biases and a tied output layer; with biases everywhere, norms with biases, and positions that are parameters."""

VARIANTS = [f"{name}/{each.name}" for name in ("gptq", "awq") for each in METHODS[name].precisions]
OPENED = [
    *((each, "llama") for each in VARIANTS),
    *((each, "qwen2") for each in ("gptq/int4-g128", "gptq/int2", "awq/int4-g128")),
    *((each, "opt") for each in ("gptq/int3", "awq/int4-g64")),
]
TOKENS = [1, *range(300, 332)]
SPREAD = 0.02
UNKNOWN = "gptqmodel is not known to write loadable {} of model type '{}'; use another method"
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""Which nibble of a word each of eight neighbouring outputs stands in."""

Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 - as shutil has it


@pytest.fixture(autouse=True)
def _nothing_is_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process of gptqmodel's is started, and no text sampled."""

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"a dummy was quantized: {arguments}")

    monkeypatch.setattr(quantize, "call", refuse)
    monkeypatch.setattr(quantize, "calibration_ids", refuse)
    monkeypatch.setattr(calibration, "artifact", refuse)


@pytest.fixture
def dummy(tmp_path: Path) -> Callable[..., Checkpoint]:
    """A dummy's folder, without weights."""

    def make(family: str = "llama", **options: Any) -> Checkpoint:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(family, **{**FAMILIES.get(family, LLAMA), **options})
        with torch.device("meta"):
            shapes = {name: list(each.shape) for name, each in AutoModelForCausalLM.from_config(config).named_parameters()}
        folder = tmp_path / f"dummy-{family}"
        config.save_pretrained(folder)
        (folder / "shapes.json").write_text(json.dumps(shapes))
        for path in resolve("canary").path.glob("tokenizer*"):
            shutil.copy(path, folder)
        content = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
        return Checkpoint(
            name=f"dummy:{family}", kind="hf", path=folder, revision="seed 0", content_hash=content, random_weights=True
        )

    return make


def asked(checkpoint: Checkpoint, variant: str) -> tuple[Spec, Settings]:
    method, _, precision = variant.partition("/")
    spec = Spec(model=checkpoint.name, variant=Variant(method=method, precision=precision))
    return spec, Settings(checkpoint=checkpoint, threads=1, context=64)


def prepare(checkpoint: Checkpoint, variant: str) -> Artifact:
    preparer = METHODS[variant.partition("/")[0]].preparer
    assert preparer
    return preparer(*asked(checkpoint, variant))


@contextmanager
def opened(checkpoint: Checkpoint, variant: str) -> Iterator[LoadedModel]:
    with METHODS[variant.partition("/")[0]].open(*asked(checkpoint, variant)) as model:
        yield model


@pytest.fixture(scope="module")
def canary(users_cache: Path) -> Mapping[str, Path]:
    """The canary as gptqmodel makes it, by method, from the user's own cache."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(users_cache))
        for method in ("gptq", "awq"):
            found[method] = prepare(resolve("canary"), f"{method}/int4-g128").path
    return found


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_dummy_of_the_canary_is_like_what_gptqmodel_makes_of_it(
    method: str, canary: Mapping[str, Path], tmp_path: Path
) -> None:
    """The first bytes of the file, all keys of config.json, and every value that says how weights are packed."""
    source = resolve("canary")
    folder = tmp_path / "dummy"
    folder.mkdir()
    for path in (source.path / "config.json", *source.path.glob("tokenizer*")):
        shutil.copy(path, folder)
    made = prepare(Checkpoint(
        name="dummy:canary", kind="hf", path=folder, revision="seed 0", content_hash="0", random_weights=True
    ), f"{method}/int4-g128").path  # fmt: skip
    real = canary[method]
    headers = [_head(each / "model.safetensors") for each in (made, real)]
    assert headers[0] == headers[1]
    assert (made / "model.safetensors").stat().st_size == (real / "model.safetensors").stat().st_size
    bodies = [json.loads((each / "config.json").read_text()) for each in (made, real)]
    assert bodies[0].keys() == bodies[1].keys()
    configs = [body.pop("quantization_config") for body in bodies]
    for config in configs:
        del config["meta"]
    assert configs[0] == configs[1]
    assert {**bodies[0], "pad_token_id": 0} == {**bodies[1], "pad_token_id": 0}
    beside = [json.loads((each / "quantize_config.json").read_text()) for each in (made, real)]
    assert beside[0].keys() == beside[1].keys()
    assert {path.name for path in real.iterdir()} - {path.name for path in made.iterdir()} == {
        "quant_log.csv", "generation_config.json"
    }  # fmt: skip


@pytest.mark.parametrize(("variant", "family"), OPENED, ids=lambda each: each)
def test_a_dummy_is_loaded_by_the_kernel_of_real_checkpoints_to_the_bytes_foretold(
    variant: str, family: str, dummy: Callable[..., Checkpoint]
) -> None:
    checkpoint = dummy(family)
    method, _, precision = variant.partition("/")
    found = prepare(checkpoint, variant)
    foretold = forecast(read_architecture(str(checkpoint.path)), method, [precision])[precision]
    assert found.quantize_s is None
    assert found.file_bytes == foretold.file_bytes == sum(path.stat().st_size for path in weight_files(found.path))
    with opened(checkpoint, variant) as model:
        assert model.memory().weight_bytes == foretold.weight_bytes
        aten = "TorchAtenLinear" if method == "gptq" else "TorchAtenAwqLinear"
        assert model.facts["kernel"] == f"gptqmodel-{aten if precision.startswith('int4') else 'TorchLinear'}"
        assert model.facts["kv_dtype"] == "float16"
        logits = np.concatenate([chunk.copy() for chunk in model.score(TOKENS)])
        assert len(list(model.generate(TOKENS, 3))) == 3
    assert np.isfinite(logits).all()
    assert len(np.unique(logits.argmax(axis=1))) > 1
    assert (np.std(logits, axis=1) > 0.01).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_the_packed_words_stand_for(variant: str, dummy: Callable[..., Checkpoint]) -> None:
    """Unpacked by the rules of auto-gptq and AutoAWQ: weights about zero, spread as if they had just been initialized."""
    from safetensors.torch import load_file

    tensors = {
        name: each.float().numpy() if each.is_floating_point() else each.numpy()
        for name, each in load_file(prepare(dummy(), variant).path / "model.safetensors").items()
    }
    assert all(np.isfinite(each).all() for each in tensors.values())
    stems = [name.removesuffix("qweight") for name in tensors if name.endswith(".qweight")]
    assert len(stems) == 14
    bits = int(variant.partition("/int")[2][0])
    seen = []
    for stem in stems:
        layer = {name.removeprefix(stem): each for name, each in tensors.items() if name.startswith(stem)}
        assert (layer["scales"] > 0).all()
        weights = _dequantized(layer, bits)
        assert abs(weights.std() / SPREAD - 1) < 0.05
        assert abs(weights.mean()) < 0.05 * SPREAD
        assert len(np.unique(weights, axis=0)) == len(weights)
        seen.append(weights.tobytes())
    assert len(set(seen)) == len(stems)
    assert abs(tensors["model.embed_tokens.weight"].std() / SPREAD - 1) < 0.02
    assert (tensors["model.norm.weight"] == 1).all()


def test_biases_are_zero_and_positions_random(dummy: Callable[..., Checkpoint]) -> None:
    from safetensors.torch import load_file

    tensors = load_file(prepare(dummy("opt"), "gptq/int4-g128").path / "model.safetensors")
    biases = [each for name, each in tensors.items() if name.endswith(".bias")]
    assert len(biases) == 2 * 8 + 1
    assert not any(each.any() for each in biases)
    assert abs(float(tensors["model.decoder.embed_positions.weight"].float().std()) / SPREAD - 1) < 0.02


@pytest.mark.parametrize("variant", ["gptq/int3", "awq/int4-g128"])
def test_a_dummy_is_written_once_and_always_the_same(
    variant: str, dummy: Callable[..., Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = dummy()
    first = prepare(checkpoint, variant).path
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert prepare(checkpoint, variant).path == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / "another"))
    again = prepare(checkpoint, variant).path
    assert again != first
    assert _contents(again) == _contents(first)


def test_each_variant_and_content_has_a_place_of_its_own(
    dummy: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = dummy()
    places = [prepare(checkpoint, each).path for each in VARIANTS]
    places.append(prepare(dummy(rms_norm_eps=1e-3), VARIANTS[0]).path)
    monkeypatch.setattr(packed_dummy, "made_by", lambda *_: "another source")
    places.append(prepare(checkpoint, VARIANTS[0]).path)
    assert len(set(places)) == len(VARIANTS) + 2


def test_several_files_load_and_are_indexed(dummy: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = dummy()
    whole = prepare(checkpoint, "gptq/int4-g64").path
    expected = safetensors_header(whole / "model.safetensors")
    shutil.rmtree(whole.parent)
    monkeypatch.setattr(packed_forecast, "SHARD_BYTES", 600_000)
    found = prepare(checkpoint, "gptq/int4-g64")
    files = weight_files(found.path)
    assert [path.name for path in files] == [f"model-{each:05d}-of-{len(files):05d}.safetensors" for each in (1, 2, 3, 4)]
    headers = {name: entry for path in files for name, entry in safetensors_header(path).items()}
    assert {name: each["shape"] for name, each in headers.items()} == {name: each["shape"] for name, each in expected.items()}
    index = json.loads((found.path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == found.file_bytes == sum(path.stat().st_size for path in files)
    foretold = forecast(read_architecture(str(checkpoint.path)), "gptq", ["int4-g64"])["int4-g64"]
    assert found.file_bytes == foretold.file_bytes
    with opened(checkpoint, "gptq/int4-g64") as model:
        assert model.memory().weight_bytes == foretold.weight_bytes


def test_the_command_that_saves_copies_it(dummy: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = dummy()
    saver = METHODS["gptq"].saver
    assert saver
    saver(*asked(checkpoint, "gptq/int4-g128"), tmp_path / "out")
    names = {"config.json", "quantize_config.json", "model.safetensors", *(each.name for each in checkpoint.path.glob("tok*"))}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert resolve(str(tmp_path / "out")).quantized == "gptq"


@pytest.mark.parametrize(
    ("variant", "options", "reason"),
    [
        (
            "gptq/int4-g128",
            {"model_type": "falcon"},
            UNKNOWN.format("GPTQ", "falcon"),
        ),
        (
            "awq/int4-g64",
            {"model_type": "gemma3_text"},
            UNKNOWN.format("AWQ", "gemma3_text"),
        ),
        ("gptq/int4-g128", {"hidden_size": 192}, "groups of 128 do not divide the rows of 192 of model.layers.0."),
        ("awq/int4-g32", {"intermediate_size": 96}, "gptqmodel makes AWQ of layers with a multiple of 64 outputs and "),
    ],
)
def test_what_the_quantizer_could_not_make_is_not_written(
    variant: str, options: Mapping[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = tmp_path / "dummy"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **LLAMA, **options}))
    checkpoint = Checkpoint(name="dummy:odd", kind="hf", path=folder, revision="", content_hash="0", random_weights=True)
    with pytest.raises(UnsupportedError) as caught:
        prepare(checkpoint, variant)
    assert str(caught.value).startswith(f"no dummy of dummy:odd can be written for {variant}: {reason}")
    assert not (tmp_path / "cache" / "packed-dummy").exists()


def test_a_disk_without_room(dummy: Callable[..., Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = dummy()
    needed = forecast(read_architecture(str(checkpoint.path)), "gptq", ["int4-g128"])["int4-g128"].file_bytes
    assert needed
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - needed + 1, needed - 1))
    with pytest.raises(ModelError) as caught:
        prepare(checkpoint, "gptq/int4-g128")
    assert "the dummy of dummy:llama in gptq/int4-g128 takes" in str(caught.value)
    assert f"({needed:,} bytes)" in str(caught.value)
    assert f"({needed - 1:,} bytes) free; set QUANTBENCH_CACHE to" in str(caught.value)
    assert list((tmp_path / "cache" / "packed-dummy").iterdir()) == []


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        length = stream.read(8)
        return length + stream.read(int.from_bytes(length, "little"))


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _codes(packed: Array, bits: int) -> Array:
    """Codes along the first axis: a stream of so many bits each, low bits first, in words of 32."""
    octets = np.ascontiguousarray(packed.T).view(np.uint8).T
    stream = np.unpackbits(octets, axis=0, bitorder="little").reshape(-1, bits, packed.shape[1])
    return (stream.astype(np.int64) << np.arange(bits)[None, :, None]).sum(axis=1)


def _dequantized(layer: Mapping[str, Array], bits: int) -> Array:
    """Weights [inputs, outputs] by the formats' documentation."""
    scales = layer["scales"]
    if "g_idx" in layer:
        groups = layer["g_idx"]
        assert (groups == np.arange(len(groups)) // (len(groups) // len(scales))).all()
        zeros = _codes(layer["qzeros"].T, bits).T[:, : scales.shape[1]] + 1
        assert (zeros == 2 ** (bits - 1)).all()
        return (_codes(layer["qweight"], bits) - zeros[groups]) * scales[groups]
    codes, zeros = (_nibbles(layer[each]) for each in ("qweight", "qzeros"))
    assert len(np.unique(zeros)) == 3
    groups = np.arange(len(codes)) // (len(codes) // len(scales))
    return (codes - zeros[groups]) * scales[groups]


def _nibbles(packed: Array) -> Array:
    """Codes of four bits along the second axis, in AutoAWQ's order of outputs."""
    return _codes(packed.T, 4).T.reshape(len(packed), -1, 8)[:, :, AWQ_ORDER].reshape(len(packed), -1)
