"""From a model's name to checked files: what is read from headers, and what is refused before any weight is loaded."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.errors import MissingDependency, ModelError, UsageError
from quantbench.core.install import install_hint
from quantbench.models import BuiltinModel, check_name
from quantbench.models.checkpoint import checkpoint_dtype, count_parameters, resolve
from quantbench.models.safetensors import safetensors_header

HEADER_BYTES = 8


def _save(path: Path, **tensors: tuple[tuple[int, ...], str]) -> None:
    """A safetensors file by its published layout: length, JSON header, zeros."""
    import math

    sizes = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in tensors.items():
        start, end = end, end + math.prod(shape) * sizes[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder as save_pretrained leaves it."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    _save(folder / "model.safetensors", weight=((4, 8), "BF16"), norm=((8,), "F32"))
    return folder


def _refusal(name: Path | str, kind: type[Exception] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        resolve(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_resolved_without_loading_a_weight(checkpoint: Path) -> None:
    found = resolve(str(checkpoint), trust_remote_code=True)
    assert (found.name, found.kind, found.path) == (str(checkpoint), "hf", checkpoint.resolve())
    assert found.trust_remote_code
    assert not resolve(str(checkpoint)).trust_remote_code


def test_a_gguf_file_is_resolved(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    found = resolve(str(path))
    assert (found.kind, found.path) == ("gguf", path.resolve())
    assert len(found.content_hash) == 64


def test_equal_content_has_an_equal_hash_wherever_it_lies(checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "renamed")
    assert resolve(str(copy)).content_hash == resolve(str(checkpoint)).content_hash


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
        "generation_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    ],
)  # fmt: skip
def test_every_file_that_changes_ids_or_answers_changes_the_hash(name: str, checkpoint: Path) -> None:
    """The reference's ids and answers are cached under this hash; generation_config.json names the end-of-sequence ids."""
    before = resolve(str(checkpoint)).content_hash
    (checkpoint / name).write_text('{"eos_token_id": 3}')
    assert resolve(str(checkpoint)).content_hash != before


def test_changed_weights_change_the_hash(checkpoint: Path) -> None:
    before = resolve(str(checkpoint)).content_hash
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert resolve(str(checkpoint)).content_hash != before


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, ""),
        ({"quantization_config": None}, ""),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),  # as transformers wrote it in 2023
        ({"quantization_config": {"wbits": 4}}, "unknown"),
    ],
)
def test_how_a_checkpoint_was_quantized_is_read_from_its_config(
    config: dict[str, object], found: str, checkpoint: Path
) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (checkpoint / "quantize_config.json").write_text('{"bits": 4}')  # means nothing where no weights are packed
    assert resolve(str(checkpoint)).quantized == found


def test_a_folder_without_a_config_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    expected = f"{checkpoint} has no config.json, so it is not a checkpoint; give the folder that save_pretrained wrote"
    assert _refusal(checkpoint) == expected


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_a_pickle_only_is_refused_and_never_opened(name: str, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert _refusal(checkpoint) == (
        f"{checkpoint} has only pickled weights ({name}), which can run code when loaded; "
        "quantbench reads safetensors, which save_pretrained writes"
    )


def test_a_folder_without_weights_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert _refusal(checkpoint).startswith(f"{checkpoint} has no weights; quantbench reads safetensors")


def test_truncated_weights_are_refused_with_both_sizes(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    expected = f"{path} is truncated: it has {len(whole) - 10} of {len(whole)} bytes; download or copy it again"
    assert _refusal(checkpoint) == expected


@pytest.mark.parametrize("kept", [0, 3, HEADER_BYTES, 40])
def test_a_truncated_header_is_refused(kept: int, checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert _refusal(checkpoint) == f"{path} is truncated: its header is incomplete; download or copy it again"


def test_a_header_that_is_not_json_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 4) + b"\xff\xfe{}" + bytes(8))
    assert _refusal(checkpoint) == f"{path} is not a safetensors file: its header is not JSON; download or copy it again"


json_but_no_table = st.recursive(st.none() | st.integers() | st.text(max_size=3), st.lists).map(json.dumps).map(str.encode)


@given(header=st.binary(max_size=40).filter(lambda text: text.strip()[:1] != b"{") | json_but_no_table)
def test_any_damaged_file_is_refused_as_such(header: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError):
        safetensors_header(path)


@pytest.mark.parametrize("entry", [{"dtype": "F32", "shape": [1]}, {"data_offsets": []}, 3])
def test_a_header_with_damaged_entries_is_refused(entry: object, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    text = json.dumps({"weight": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ModelError):
        safetensors_header(path)


def test_a_shard_that_the_index_names_and_that_is_missing_is_refused(checkpoint: Path) -> None:
    """An interrupted download: the shards that are there are whole."""
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    shards = {"weight": "model-00001-of-00002.safetensors", "head": "model-00002-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "model-00002-of-00002.safetensors" in _refusal(checkpoint)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for content in (b"", b"GG", b"\x80\x04pickle", b"ggml...."):
        path.write_bytes(content)
        assert _refusal(path) == f"{path} is not a GGUF file (its first bytes are not GGUF); download or copy it again"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "nowhere.gguf"])
def test_a_path_that_is_not_there_is_refused(name: str) -> None:
    expected = f"model path {name!r} does not exist; give a checkpoint folder or a .gguf file"
    assert _refusal(name, UsageError) == expected


def test_an_unknown_name_gets_the_nearest() -> None:
    assert _refusal("kanary", UsageError) == "unknown model 'kanary'; did you mean 'canary'?"


@pytest.mark.parametrize("name", ["canary", "org/model", "org/model@main", "org/model@refs/pr/3", "o.r-g/m_o.del-1"])
def test_names_that_can_be_models_are_accepted_without_looking_anywhere(name: str) -> None:
    check_name(name)


def test_a_home_folder_is_expanded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert resolve("~/tiny").path == checkpoint.resolve()


def _hub(monkeypatch: pytest.MonkeyPatch, download: object) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))


def test_a_hub_id_is_fetched_at_its_revision_and_named_by_its_commit(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    commit = checkpoint.rename(checkpoint.parent / "0123abcd")

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        assert not any(Path("pytorch_model.bin").match(pattern) for pattern in allow_patterns)
        return str(commit)

    _hub(monkeypatch, download)
    assert resolve("org/model@v2").revision == "0123abcd"
    resolve("org/model")
    assert asked == [("org/model", "v2"), ("org/model", None)]


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise OSError("\n  Connection refused\nand forty lines more")

    _hub(monkeypatch, download)
    assert _refusal("org/model") == (
        "model 'org/model' could not be fetched from the hub (Connection refused); check the name, the network and HF_TOKEN"
    )


def test_a_hub_id_without_the_extra_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert install_hint("torch") in _refusal("org/model", MissingDependency)


def test_the_header_agrees_with_the_safetensors_library(tmp_path: Path) -> None:
    import numpy as np
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = tmp_path / "model.safetensors"
    tensors = {"a": np.ones((3, 5), np.float32), "b": np.ones((2, 2, 2), np.float16), "empty": np.ones((0, 4), np.float32)}
    save_file(tensors, path, metadata={"format": "np"})
    header = safetensors_header(path)
    with safe_open(path, framework="numpy") as opened:
        assert set(header) == set(opened.keys())
        for name, entry in header.items():
            assert entry["shape"] == opened.get_slice(name).get_shape()
            assert entry["dtype"] == opened.get_slice(name).get_dtype()
            start, end = entry["data_offsets"]
            assert end - start == tensors[name].nbytes


def test_parameters_are_the_elements_of_all_shards(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    _save(checkpoint / "model-00002-of-00002.safetensors", head=((5, 7), "F16"), scalar=((), "F32"))
    assert count_parameters(resolve(str(checkpoint))) == 4 * 8 + 8 + 5 * 7 + 1


def test_weights_that_transformers_does_not_load_are_not_counted(checkpoint: Path) -> None:
    """Some hub repositories hold the same weights twice: for transformers, and consolidated for the maker's own code."""
    _save(checkpoint / "consolidated.safetensors", weight=((4, 8), "BF16"), norm=((8,), "F32"))
    assert count_parameters(resolve(str(checkpoint))) == 4 * 8 + 8


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"a": ((8, 8), "BF16"), "b": ((8,), "F32")}, "bf16"),
        ({"a": ((8, 8), "F16"), "b": ((8, 7), "BF16")}, "fp16"),
        ({"a": ((8, 4), "F32"), "b": ((8, 7), "BF16")}, "fp32"),
        ({"a": ((8, 8), "I8"), "b": ((1,), "F32")}, "i8"),
    ],
)
def test_the_checkpoints_dtype_is_that_of_most_bytes(
    tensors: dict[str, tuple[tuple[int, ...], str]], expected: str, tmp_path: Path
) -> None:
    _save(tmp_path / "model.safetensors", **tensors)
    assert checkpoint_dtype(tmp_path) == expected


def test_a_built_in_model_is_resolved_by_name(checkpoint: Path, plug_in: Callable[..., None]) -> None:
    from quantbench.models import MODELS

    builtin = BuiltinModel(name="tiny", about="for this test", folder=lambda: checkpoint)
    plug_in(MODELS, builtin)
    assert (resolve("tiny").path, resolve("tiny").revision) == (checkpoint, "built-in")
