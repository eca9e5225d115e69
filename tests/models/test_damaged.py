"""Files of a model that somebody changed: each ended in an exception of Python's, and now in a sentence."""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from quantbench.core.errors import ModelError, UsageError
from quantbench.core.job import Checkpoint
from quantbench.models.checkpoint import checkpoint_dtype, count_parameters, resolve
from quantbench.models.gguf import GgufHeader
from quantbench.models.safetensors import safetensors_header, weight_files
from quantbench.models.vocabulary import read_vocabulary
from quantbench.planning.settled import settled
from quantbench.runtimes.llama_cpp.plan import gguf_architecture

if TYPE_CHECKING:
    from pathlib import Path

DEEP = "[" * 100_000
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def _save(path: Path, header: object) -> Path:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    return path


@pytest.mark.parametrize(
    "header",
    [
        DEEP, [], {"a": []}, {"a": {**ENTRY, "dtype": 1}}, {"a": {**ENTRY, "shape": None}}, {"a": {**ENTRY, "shape": [1.5]}},
        {"a": {**ENTRY, "shape": [-1]}}, {"a": {**ENTRY, "shape": [True]}}, {"a": {**ENTRY, "data_offsets": ["0", "8"]}},
        {"a": {**ENTRY, "data_offsets": [8, 0]}}, {"a": {**ENTRY, "data_offsets": [0]}}, {"a": {**ENTRY, "shape": [2**70]}},
    ],
)  # fmt: skip
def test_a_header_of_safetensors_that_is_none(tmp_path: Path, header: object) -> None:
    with pytest.raises(ModelError, match="is not a safetensors file: its header is"):
        safetensors_header(_save(tmp_path / "model.safetensors", header))


def _folder(folder: Path, header: object, **config: Any) -> Checkpoint:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    _save(folder / "model.safetensors", header)
    return Checkpoint(name="m", kind="hf", path=folder, revision="", content_hash="")


def test_weights_without_a_tensor_have_no_dtype(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has safetensors without a tensor"):
        checkpoint_dtype(_folder(tmp_path, {}).path)


@pytest.mark.parametrize("bits", [None, "x", 0, -4, 2.5, True, 10**400])
def test_packed_weights_of_so_many_bits_are_not_counted(tmp_path: Path, bits: object) -> None:
    checkpoint = _folder(tmp_path, {"a.qweight": ENTRY}, quantization_config={"quant_method": "gptq", "bits": bits})
    with pytest.raises(ModelError, match="bits are packed; give an intact quantization config"):
        count_parameters(checkpoint)


def test_words_of_no_type_are_not_counted(tmp_path: Path) -> None:
    checkpoint = _folder(tmp_path, {"a.qweight": {**ENTRY, "dtype": "BOOL"}}, quantization_config={"bits": 4})
    with pytest.raises(ModelError, match="packs weights into 'BOOL', which is no type of integers"):
        count_parameters(checkpoint)


@pytest.mark.parametrize(
    "index", [DEEP, "[]", *(f'{{"weight_map": {{"a": {odd}}}}}' for odd in ('["x"]', "1", '"y\\u0000"'))]
)
def test_an_index_that_is_none(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"it has no weight_map|lacks the shard"):
        weight_files(tmp_path)


def test_a_fifo_among_the_weights_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="has no weights"):
        resolve(str(tmp_path))
    os.mkfifo(tmp_path / "file.gguf")
    with pytest.raises((ModelError, UsageError)):
        resolve(str(tmp_path / "file.gguf"))


def _gguf(path: Path, **values: tuple[Any, gguf.GGUFValueType]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, (value, kind) in values.items():
        if kind is gguf.GGUFValueType.ARRAY:
            writer.add_array(key.replace("__", "."), value)
        else:
            writer.add_key_value(key.replace("__", "."), value, kind)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_type_that_is_a_list_names_no_precision(tmp_path: Path) -> None:
    path = _gguf(tmp_path / "odd.gguf", general__file_type=([1, 2], gguf.GGUFValueType.ARRAY))
    assert GgufHeader(path).precision == "unknown"
    assert settled(str(path)) is None


def test_tokens_that_are_numbers_are_no_vocabulary(tmp_path: Path) -> None:
    path = _gguf(tmp_path / "odd.gguf", tokenizer__ggml__tokens=([1, 2], gguf.GGUFValueType.ARRAY))
    assert read_vocabulary(Checkpoint(name="m", kind="gguf", path=path, revision="", content_hash="")) is None


@pytest.mark.parametrize("tokenizer", ['{"model": {"vocab": {"a": "0"}}}', '{"model": {"vocab": [[1, 2]]}}'])
def test_tokens_of_a_folder_that_are_none(tmp_path: Path, tokenizer: str) -> None:
    checkpoint = _folder(tmp_path, {"a": ENTRY})
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(ModelError, match="is not as tokenizers writes it"):
        read_vocabulary(checkpoint)


def test_a_header_of_four_billion_blocks_is_refused_and_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantbench.runtimes.llama_cpp.dry_run import answer_or_refuse

    monkeypatch.setattr("quantbench.runtimes.llama_cpp.plan.call", lambda _, request, *__, **___: answer_or_refuse(request))
    number = gguf.GGUFValueType.UINT32
    figures = {"embedding_length": 32, "attention__head_count": 4, "context_length": 64, "block_count": 2**32 - 1}
    path = _gguf(tmp_path / "odd.gguf", **{f"llama__{key}": (value, number) for key, value in figures.items()})
    with pytest.raises(ModelError, match="contradicts itself in its header"):
        gguf_architecture(path)
