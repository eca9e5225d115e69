"""GGUF files of dummies: llama.cpp's header and types, and random blocks that it quantized, repeated over every tensor.

No weights are converted or quantized: a file is written at the speed of the disk, and memory holds only a few MB of it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from quantbench.core.cache import artifact, made_by, require_room
from quantbench.core.children import call
from quantbench.core.errors import ChildError, ModelError, UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.protocols import Artifact
from quantbench.models.architecture import Architecture
from quantbench.models.config import CONFIG, read_architecture
from quantbench.models.dummy import read_shapes
from quantbench.models.gguf import block_of, tensor_bytes
from quantbench.models.pool import SEED, SPREAD, cut
from quantbench.runtimes.llama_cpp.blocks import packed
from quantbench.runtimes.llama_cpp.converter import converter
from quantbench.runtimes.llama_cpp.files import MODEL_FILE, fallback_facts, file_type, gguf_maker
from quantbench.runtimes.llama_cpp.plan import File, tensors_of
from quantbench.runtimes.llama_cpp.tensors import TypedTensor

_MAKERS = (
    "quantbench.runtimes.llama_cpp.dummy", "quantbench.runtimes.llama_cpp.header", "quantbench.runtimes.llama_cpp.tensors",
    "quantbench.runtimes.llama_cpp.blocks", "quantbench.models.pool",
)  # fmt: skip

_ROWS, _ROW = 4093, 256
"""Weights of a pool: a prime number of the largest block, so that no two neighbouring rows of a matrix are the same."""

_FALLBACK = "fallback.json"
_HEADER, _VALUES = "header.gguf", "values.json"
_ALIGNMENT = 32
_COMPUTED, _NORM = "rope_", "_norm.weight"


def dummy_file(checkpoint: Checkpoint, precision: str, files: Sequence[File]) -> Artifact:
    """The dummy as a GGUF file of a precision, one of ``files``, written on first use.

    Where that is made with an importance matrix, the types are those that llama.cpp gives with one; none is computed.

    Raises UnsupportedError if llama.cpp refuses the type for these shapes or has no such architecture, ModelError if
    the disk has no room or the converter does not take the configuration.
    """
    asked = {
        "content": checkpoint.content_hash, "precision": precision, "dummy": made_by(*_MAKERS), "gguf": version("gguf"),
        **gguf_maker(),
    }  # fmt: skip
    (kind,) = (kind for name, kind, _ in files if name == precision)

    def make(folder: Path) -> None:
        architecture = _architecture(checkpoint)
        tensors, fell = tensors_of(architecture, precision, files)
        needed = sum(tensor_bytes(shape, kind) for _, shape, kind in tensors)
        require_room(folder, needed, f"the {precision} file of {checkpoint.name}")
        header = _header(checkpoint, tensors_of(architecture, "f16", files)[0])
        _start(folder / MODEL_FILE, header / _HEADER, file_type(kind), tensors)
        _fill(folder / MODEL_FILE, tensors, json.loads((header / _VALUES).read_text()))
        (folder / _FALLBACK).write_text(json.dumps(fell))

    folder = artifact("gguf", asked, make)
    path = folder / MODEL_FILE
    facts = fallback_facts(json.loads((folder / _FALLBACK).read_text()))
    return Artifact(path=path, file_bytes=path.stat().st_size, quantize_s=None, facts=facts)


def _architecture(checkpoint: Checkpoint) -> Architecture:
    """What the dummy's configuration describes; UnsupportedError if transformers makes other tensors of it."""
    found = read_architecture(str(checkpoint.path))
    if {tensor.name: tuple(tensor.shape) for tensor in found.tensors} != read_shapes(checkpoint.path):
        raise UnsupportedError(
            f"quantbench does not know the tensors of model type {found.model_type!r} as transformers makes them, so it cannot "
            "write a GGUF file of them; ask for torch, or give the real checkpoint"
        )
    return found


def _header(checkpoint: Checkpoint, tensors: Sequence[TypedTensor]) -> Path:
    """The folder of the header of the dummy's F16 file, and of the values that the converter computes for it."""
    asked = {"content": checkpoint.content_hash, "dummy": made_by(*_MAKERS), "gguf": version("gguf"), **gguf_maker()}

    def make(folder: Path) -> None:
        source = folder / "source"
        source.mkdir()
        for path in (checkpoint.path / CONFIG, *checkpoint.path.glob("*token*")):
            shutil.copyfile(path, source / path.name)
        request = {
            "source": str(source), "target": str(folder / _HEADER), "converter": str(converter().parent),
            "tensors": [[name, shape, kind, tensor_bytes(shape, kind)] for name, shape, kind in tensors],
        }  # fmt: skip
        computed = _converted(request, checkpoint.name)
        shutil.rmtree(source)
        (folder / _VALUES).write_text(json.dumps(computed))
        if computed.keys() != {name for name, _, _ in tensors if name.startswith(_COMPUTED)}:
            raise UnsupportedError(
                f"llama.cpp's converter computes {', '.join(computed) or 'no tensors'} for {checkpoint.name}, which is not "
                "what the forecast of its file counts; ask for torch"
            )

    return artifact("gguf-header", asked, make)


def _converted(request: Mapping[str, Any], name: str) -> dict[str, list[float]]:
    """The values that the converter computes for the header that it writes."""
    try:
        values: dict[str, list[float]] = call(
            "quantbench.runtimes.llama_cpp.header", request, f"llama.cpp's converter, at the header of {name},"
        )
    except ChildError as error:
        raise ModelError(
            f"llama.cpp's converter does not take the configuration of {name} ({error.reason}); ask for torch"
        ) from error
    return values


def _start(target: Path, header: Path, number: int, tensors: Sequence[TypedTensor]) -> None:
    """Begin the file: the F16 file's header with another file type, and the types that the tensors have in it."""
    from gguf import GGMLQuantizationType, GGUFReader

    shutil.copyfile(header, target)
    os.truncate(target, target.stat().st_size + 4 * sum(math.prod(shape) + _ALIGNMENT for _, shape, _ in tensors))  # a hole
    reader: Any = GGUFReader(target, "r+")
    reader.fields["general.file_type"].parts[-1][0] = number
    place = 0
    for entry, (_, shape, kind) in zip(reader.tensors, tensors, strict=True):
        *_, stored_type, offset = entry.field.parts
        stored_type[0], offset[0] = GGMLQuantizationType[kind], place
        place += _padded(tensor_bytes(shape, kind))
    reader.data.flush()
    start = reader.data_offset
    del reader, entry, stored_type, offset
    os.truncate(target, start)


def _padded(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


def _fill(target: Path, tensors: Sequence[TypedTensor], values: Mapping[str, Sequence[float]]) -> None:
    """Write one tensor after another."""
    import numpy as np

    with target.open("ab") as stream:
        for name, shape, kind in tensors:
            if name in values:
                stream.write(np.array(values[name], dtype=np.float32).tobytes())
            elif len(shape) < 2 or name.endswith(_NORM):
                stream.write(np.full(shape, float(not name.endswith(".bias")), dtype=np.float32).tobytes())
            else:
                _tile(stream, name, tensor_bytes(shape, kind), kind)
            stream.write(bytes(-tensor_bytes(shape, kind) % _ALIGNMENT))


def _tile(stream: BinaryIO, name: str, count: int, kind: str) -> None:
    """Fill a tensor with whole blocks of the pool."""
    pool, block = memoryview(random_blocks(kind)), block_of(kind)[1]
    stream.writelines(pool[piece.start * block : piece.stop * block] for piece in cut(name, count // block, len(pool) // block))


@cache
def random_blocks(kind: str) -> bytes:
    """Normal random weights in blocks of a type, quantized by ggml itself if that type is quantized."""
    import numpy as np

    weights = np.random.default_rng(SEED).standard_normal((_ROWS, _ROW), dtype=np.float32) * np.float32(SPREAD)
    return packed(weights, kind, np.ones(_ROW, dtype=np.float32)).tobytes()
