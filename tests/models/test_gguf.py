"""The header of a GGUF file: what gguf's own writer wrote and its reader reads; and files that are cut short, or lie."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quantbench.core.errors import ModelError
from quantbench.models.checkpoint import resolve
from quantbench.models.gguf import GgufHeader
from quantbench.runtimes.llama_cpp.files import f16_file, quantized_file

TOKENS = 150_000
DAMAGED = r"odd\.gguf is cut short or damaged; make or download it again"


def written(path: Path, *, alignment: int = 0, **values: Any) -> Path:
    """A file of two tensors, with every kind of value that a header can hold."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for number, kind in enumerate(gguf.GGUFValueType):
        if kind not in (gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY):
            writer.add_key_value(f"one.{kind.name}", bool(number % 2) if kind is gguf.GGUFValueType.BOOL else number, kind)
    writer.add_string("text", "naïve ✓")
    writer.add_array("numbers", [3, -1, 5])
    writer.add_array("texts", ["", "a", "naïve ✓"])
    writer.add_array("truths", [True, False])
    for key, value in values.items():
        writer.add_key_value(key.replace("__", "."), value, gguf.GGUFValueType.UINT32)
    writer.add_tensor("a.weight", np.arange(24, dtype=np.float16).reshape(4, 6))
    writer.add_tensor("b.weight", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def same(path: Path) -> None:
    """Hold the header to gguf's own reader."""
    theirs, ours = gguf.GGUFReader(path), GgufHeader(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}

    assert {key: ours.get(key) for key in ours} == fields
    assert [
        (each.name, each.shape, each.kind, each.bytes, each.start, math.prod(each.shape)) for each in ours.tensors
    ] == [
        (each.name, tuple(each.shape[::-1]), each.tensor_type.name, each.n_bytes, each.data_offset, each.n_elements)
        for each in theirs.tensors
    ]  # fmt: skip


@pytest.mark.parametrize("alignment", [0, 64])
def test_a_header_is_what_the_gguf_package_reads(tmp_path: Path, alignment: int) -> None:
    path = written(tmp_path / "odd.gguf", alignment=alignment)
    same(path)
    assert GgufHeader(path).get("no.such.key") is None


@pytest.mark.usefixtures("artifacts")
def test_so_are_the_headers_of_real_files() -> None:
    canary = resolve("canary")
    for path in (f16_file(canary), quantized_file(canary, "q4_k_m").path):
        same(path)


@pytest.fixture(name="large", scope="module")
def _large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The header of a file with a vocabulary as large as today's, its tokens of all lengths."""
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([f"{number:x}" * (number % 7) for number in range(TOKENS)])
    writer.add_token_scores([float(number) for number in range(TOKENS)])
    writer.add_context_length(77)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def test_a_large_vocabulary_is_stepped_over_and_read_when_it_is_asked_for(large: Path) -> None:
    header = GgufHeader(large)

    assert header.get("llama.context_length") == 77
    assert header.get("tokenizer.ggml.tokens") == [f"{number:x}" * (number % 7) for number in range(TOKENS)]
    assert sum(header.get("tokenizer.ggml.scores")) == TOKENS * (TOKENS - 1) / 2


def test_a_header_cut_short_anywhere_is_one_sentence(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.gguf").read_bytes()
    needed = max(each.start + each.bytes for each in GgufHeader(tmp_path / "whole.gguf").tensors)
    cut = tmp_path / "odd.gguf"

    for length in range(0, needed, 3):
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=DAMAGED):
            GgufHeader(cut)


HUGE = struct.pack("<Q", 2**62)
_KEY = struct.pack("<Q1s", 1, b"k")


@pytest.mark.parametrize(
    "rest",
    [
        HUGE + struct.pack("<Q", 0),
        struct.pack("<Q", 0) + HUGE,
        struct.pack("<QQ", 0, 1) + HUGE,
        struct.pack("<QQ", 0, 1) + _KEY + struct.pack("<I", 8) + HUGE,
        struct.pack("<QQ", 0, 1) + _KEY + struct.pack("<II", 9, 8) + HUGE,
        struct.pack("<QQ", 0, 1) + _KEY + struct.pack("<II", 9, 4) + HUGE,
        struct.pack("<QQ", 0, 1) + _KEY + struct.pack("<II", 9, 9) * 1000,
        struct.pack("<QQ", 0, 1) + _KEY + struct.pack("<I", 99),
        struct.pack("<QQ", 1, 0) + _KEY + struct.pack("<I", 2**32 - 1),
        struct.pack("<QQ", 1, 0) + _KEY + struct.pack("<IQQIQ", 2, 2**63, 2**63, 0, 0),
        struct.pack("<QQ", 0, 2) + (_KEY + struct.pack("<IB", 7, 1)) * 2,
        struct.pack("<QQ", 0, 1) + struct.pack("<Q1s", 1, b"\xff") + struct.pack("<IB", 7, 1),
    ],
    ids=[
        "tensors", "values", "a key", "a text", "an array of texts", "an array of numbers", "arrays of arrays", "no such type",
        "dimensions", "a shape", "a key twice", "no UTF-8",
    ],
)  # fmt: skip
def test_lengths_that_lie_are_one_sentence(tmp_path: Path, rest: bytes) -> None:
    """Not a MemoryError, nor a loop of years: nothing beyond the file's end is believed."""
    path = tmp_path / "odd.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + rest + bytes(64))
    with pytest.raises(ModelError, match=DAMAGED):
        GgufHeader(path)


@pytest.mark.parametrize(("version", "how"), [(1, "of version 1"), (4, "of version 4"), (3 << 24, "big-endian")])
def test_versions_and_byte_orders_that_llama_cpp_does_not_read_are_named(tmp_path: Path, version: int, how: str) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, 0))
    with pytest.raises(ModelError, match=rf"odd\.gguf is a GGUF file {how}, which llama\.cpp cannot read here"):
        GgufHeader(path)


@pytest.mark.parametrize(
    ("number", "precision"), [(15, "q4_k_m"), (0, "f32"), (38, "mxfp4_moe"), (12345, "unknown")], ids=str
)
def test_the_precision_is_the_file_type_of_the_header(tmp_path: Path, number: int, precision: str) -> None:
    assert GgufHeader(written(tmp_path / "odd.gguf", general__file_type=number)).precision == precision


@pytest.mark.usefixtures("artifacts")
@pytest.mark.parametrize("precision", ["q4_k_m", "q6_k", "q8_0"])
def test_without_a_file_type_it_is_what_llama_cpp_would_take_it_for(tmp_path: Path, precision: str) -> None:
    made = quantized_file(resolve("canary"), precision).path
    path = tmp_path / "odd.gguf"
    path.write_bytes(made.read_bytes().replace(b"general.file_type", b"general.file_tape"))

    assert GgufHeader(path).precision == GgufHeader(made).precision == precision
