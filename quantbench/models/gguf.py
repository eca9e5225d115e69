"""The files of a GGUF model, one or the numbered parts of llama.cpp's split tool, and their headers.

A header is read in place from the mapped file: stepping over a vocabulary of 150,000 tokens takes a tenth of a second, where
making a Python object of every token takes several seconds. Layout: ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from quantbench.core.errors import ModelError
from quantbench.core.text import one_line

_MAGIC = b"GGUF"
_BESIDE = re.compile(r"mmproj|(^|/)imatrix[^/]*$|imatrix\.gguf$")
"""What lies beside the models of a repository in files of the same kind."""

_PART = re.compile(r"-(\d{5})-of-(?!00000)(\d{5})(?=\.gguf$)")

_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Format characters of ``struct`` by GGUF's number of a value type."""

_STRING, _ARRAY = 8, 9
_COUNT, _NUMBER = struct.Struct("<Q"), struct.Struct("<I")
_ALIGNMENT = 32
_LONGEST_NAME = 40
"""Characters of a name that a header may give."""

_MEDIUM = ("q3_k", "q4_k", "q5_k")
"""Tensor types that llama.cpp takes for the medium mix of that name, if a header does not name the file type."""


def part_names(name: str) -> list[str]:
    """Names of all parts of a split file, given any of them; a file that is not split is its only part."""
    found = _PART.search(name)
    if not found:
        return [name]
    count = found[2]
    return [f"{name[: found.start()]}-{number:05d}-of-{count}.gguf" for number in range(1, int(count) + 1)]


def whole_name(name: str) -> str:
    """The name of a GGUF file without its ending, and without the number of a part: ``big/tiny.Q8_0``."""
    return _PART.sub("", name).removesuffix(".gguf")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A GGUF model in a listing of files: the path of its first or only part, and the bytes of all that are listed."""

    first: str
    size_bytes: int

    @property
    def name(self) -> str:
        """Its path without the ending and the number of a part."""
        return whole_name(self.first)

    @property
    def parts(self) -> tuple[str, ...]:
        """The paths of all its parts."""
        return tuple(part_names(self.first))


def listed_files(sizes: Mapping[str, int]) -> list[ListedFile]:
    """The language models among files whose bytes are given by path, parts together: no ``mmproj``, no importance matrix."""
    found: dict[str, int] = {}
    for path, size in sorted(sizes.items()):
        if path.endswith(".gguf") and not _BESIDE.search(path.lower()):
            first = part_names(path)[0]
            found[first] = found.get(first, 0) + size
    return [ListedFile(first, size) for first, size in found.items()]


def gguf_parts(path: Path) -> list[Path]:
    """All files of the GGUF model whose first or only file is ``path``, in order.

    Raises ModelError for a later part, a missing part, and a file that is not GGUF.
    """
    parts = [path.with_name(name) for name in part_names(path.name)]
    if path != parts[0]:
        raise ModelError(f"{path} is a later part of a split GGUF file; give the first one, {parts[0].name}")
    for part in parts:
        if not part.is_file():
            raise ModelError(f"{path} is incomplete: its part {part.name} is missing; download or copy it again")
        with part.open("rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                raise ModelError(f"{part} is not a GGUF file (its first bytes are not GGUF); download or copy it again")
    return parts


def maker(header: GgufHeader) -> str:
    """Who made a file, as its header says, on one line; empty if it does not."""
    told = (header.get(f"general.{key}") for key in ("quantized_by", "author", "organization"))
    return next((name for each in told if isinstance(each, str) and (name := one_line(each)[:_LONGEST_NAME])), "")


def all_tensors(path: Path) -> list[GgufTensor]:
    """The tensors of the GGUF model whose first or only file is ``path``; raises what ``gguf_parts`` and ``GgufHeader`` do."""
    return [tensor for part in gguf_parts(path) for tensor in GgufHeader(part).tensors]


class GgufTensor(NamedTuple):
    """A tensor: its shape in torch's order, with the row last; its type's name; where its bytes start in the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    start: int

    @property
    def bytes(self) -> int:
        """The size of its values in bytes."""
        return tensor_bytes(self.shape, self.kind)


class GgufHeader:
    """The header of one file: ``tensors`` in order, and values by key, each read on demand."""

    def __init__(self, path: Path) -> None:
        """Map the file and step over its header.

        ModelError if it is truncated or damaged, is not little-endian version 2 or 3, or has tensors of a type that the
        installed gguf does not know.
        """
        self._path = path
        self._place = len(_MAGIC)
        self._values: dict[str, tuple[int, int]] = {}
        try:
            with path.open("rb") as stream:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._read()
        except OSError as error:
            raise ModelError(f"{path} cannot be read ({error.strerror}); make it readable, or give another copy") from error
        except (ValueError, struct.error) as error:  # an empty file cannot be mapped; invalid UTF-8 is a ValueError
            raise ModelError(f"{path} is cut short or damaged; make or download it again") from error

    def __iter__(self) -> Iterator[str]:
        """The keys, in order."""
        return iter(self._values)

    def get(self, key: str) -> Any:
        """The value of a key: a number, a string, a boolean, or a list of these; None if the header has no such key."""
        if key not in self._values:
            return None
        kind, self._place = self._values[key]
        try:
            return self._value(kind)
        except (ValueError, struct.error) as error:
            raise ModelError(f"{self._path} is cut short or damaged; make or download it again") from error

    @property
    def precision(self) -> str:
        """The precision that the header names, for example ``q4_k_m``; if it names none, what llama.cpp takes it for.

        That is the type of most tensors (``llama_model_loader`` in llama-model-loader.cpp); ``unknown`` if there are none.
        """
        from gguf import LlamaFileType

        number = self.get("general.file_type")
        names: dict[int, str] = {int(each): each.name for each in LlamaFileType}
        if isinstance(number, int) and number in names:
            return names[number].removeprefix("MOSTLY_").removeprefix("ALL_").lower()
        counts = Counter(tensor.kind.lower() for tensor in self.tensors)
        if number is not None or not counts:
            return "unknown"
        most = counts.most_common(1)[0][0]
        return f"{most}_m" if most in _MEDIUM else most

    def _read(self) -> None:
        if self._data[: len(_MAGIC)] != _MAGIC:
            raise ValueError("no GGUF")
        version = self._take(_NUMBER)
        if version not in _VERSIONS:
            how = "big-endian" if version & 0xFFFF == 0 else f"of version {version}"
            raise ModelError(f"{self._path} is a GGUF file {how}, which llama.cpp cannot read here; download or make another")
        tensors, values = self._take(_COUNT), self._take(_COUNT)
        for _ in range(values):
            key, kind = self._text(), self._take(_NUMBER)
            if key in self._values:
                raise ValueError(f"{key} twice")
            self._values[key] = (kind, self._place)
            self._step_over(kind)
        alignment = self._alignment()
        found = [self._tensor() for _ in range(tensors)]
        first = -(-self._place // alignment) * alignment
        self.tensors = tuple(each._replace(start=first + each.start) for each in found)
        twice = len({each.name for each in found}) < len(found)
        if twice or any(each.start + each.bytes > self._size for each in self.tensors):
            raise ValueError("a tensor twice, or beyond the end")

    @property
    def _size(self) -> int:
        return len(self._data)

    def _alignment(self) -> int:
        place = self._place
        alignment = self.get("general.alignment") or _ALIGNMENT
        self._place = place
        if not isinstance(alignment, int) or alignment & (alignment - 1):
            raise ValueError("no power of two")
        return alignment

    def _tensor(self) -> GgufTensor:
        """A tensor's entry; its ``start`` is still relative to the data section."""
        name, dimensions = self._text(), self._take(_NUMBER)
        shape = struct.unpack_from(f"<{dimensions}Q", self._data, self._advance(_COUNT.size * dimensions))
        number, start = self._take(_NUMBER), self._take(_COUNT)
        return GgufTensor(name, shape[::-1], self._kind(number), start)

    def _kind(self, number: int) -> str:
        if number not in _kinds():
            raise ModelError(f"{self._path} has tensors of a type that the installed gguf does not know ({number})")
        return _kinds()[number]

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._take(_scalar(kind))
        inner, count = self._take(_NUMBER), self._take(_COUNT)
        if inner == _STRING:
            return [self._text() for _ in range(count)]
        values = struct.Struct(f"<{count}{_scalar(inner).format[1:]}")
        return list(values.unpack_from(self._data, self._advance(values.size)))

    def _step_over(self, kind: int) -> None:
        """Skip a value without reading it."""
        if kind == _STRING:
            self._advance(self._take(_COUNT))
        elif kind != _ARRAY:
            self._advance(_scalar(kind).size)
        else:
            inner, count = self._take(_NUMBER), self._take(_COUNT)
            if inner == _STRING:
                self._step_over_texts(count)
            else:
                self._advance(count * _scalar(inner).size)

    def _step_over_texts(self, count: int) -> None:
        """Skip strings. Nearly all of a header's time goes into this loop, so it calls nothing but what reads a length."""
        data, read, place, size = self._data, _COUNT.unpack_from, self._place, self._size
        for _ in range(count):  # each takes at least 8 bytes, so a false count stops at the end of the file
            place += 8 + read(data, place)[0]
            if place > size:
                break
        self._advance(place - self._place)

    def _text(self) -> str:
        length = self._take(_COUNT)
        start = self._advance(length)
        return self._data[start : start + length].decode()

    def _take(self, what: struct.Struct) -> Any:
        return what.unpack_from(self._data, self._advance(what.size))[0]

    def _advance(self, count: int) -> int:
        """Move on by ``count`` bytes and return where they start. ValueError if the file has fewer left."""
        start = self._place
        if count > self._size - start:
            raise ValueError("beyond the end")
        self._place = start + count
        return start


def _scalar(kind: int) -> struct.Struct:
    """How a number or boolean of a type is stored; ValueError for an unknown type, and for arrays of arrays."""
    if kind not in _SCALARS:
        raise ValueError(f"no type {kind}")
    return struct.Struct(f"<{_SCALARS[kind]}")


def tensor_bytes(shape: Sequence[int], kind: str) -> int:
    """Bytes of a tensor of a type; the last dimension is the row."""
    block, size = block_of(kind)
    return math.prod(shape) // block * size


@cache
def block_of(kind: str) -> tuple[int, int]:
    """Weights and bytes of a block of a type, from gguf's own table."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(weights), int(size)


@cache
def _kinds() -> dict[int, str]:
    """Names of tensor types by number, for those whose block sizes gguf knows."""
    from gguf import GGML_QUANT_SIZES

    return {int(each): each.name for each in GGML_QUANT_SIZES}
