"""The safetensors in a folder: which files are loaded, and what their headers say, or will say; no weights are read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantbench.core.errors import ModelError
from quantbench.core.outside import is_file, parse_json, read_text

_LONGEST_HEADER = 100_000_000
"""In bytes: the limit of safetensors' own reader."""

_LENGTH_BYTES = 8
_MOST, _MOST_DIMENSIONS = 2**63 - 1, 64
_METADATA_KEY = "__metadata__"
_METADATA = {_METADATA_KEY: {"format": "pt"}}
_ITEM_BYTES: Mapping[str, int] = {
    "U8": 1, "I8": 1, "F8_E4M3": 1, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8,
}  # fmt: skip
"""Bytes of one value by dtype, in the order of safetensors' own list of dtypes."""

_ORDER = tuple(_ITEM_BYTES)

Stored = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of a tensor, as a header has them."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load: the single file, or the shards in the index, or all.

    Raises ModelError if a shard is missing or the index is damaged.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = weight_index(folder)
    if index is None:
        return sorted(path for path in folder.glob("*.safetensors") if is_file(path))
    try:
        shards = sorted(set(parse_json(read_text(index))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged: it has no weight_map; download or copy it again") from error
    for name in shards:
        if not (isinstance(name, str) and is_file(folder / name)):
            raise ModelError(f"{folder} lacks the shard {name}, which its index names; download or copy it again")
    return [folder / name for name in shards]


def weight_index(folder: Path) -> Path | None:
    """The index of sharded weights, by transformers' name or the only other such file; None if there is none."""
    index = folder / "model.safetensors.index.json"
    others = sorted(folder.glob("*.safetensors.index.json"))
    return index if index.is_file() else others[0] if len(others) == 1 else None


def safetensors_header(path: Path) -> dict[str, Any]:
    """Tensor entries of a safetensors file (dtype, shape, data_offsets); ModelError if it is truncated or not safetensors."""
    try:
        size, length, raw = _raw_header(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); make it readable, or give another copy") from error
    try:
        header: dict[str, Any] = parse_json(raw)
    except ValueError as error:
        raise ModelError(f"{path} is not a safetensors file: its header is not JSON; download or copy it again") from error
    if not isinstance(header, dict) or not all(_is_entry(entry) for name, entry in header.items() if name != _METADATA_KEY):
        raise ModelError(f"{path} is not a safetensors file: its header is damaged; download or copy it again")
    header.pop(_METADATA_KEY, None)
    needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < needed:
        raise ModelError(f"{path} is truncated: it has {size} of {needed} bytes; download or copy it again")
    return header


def _raw_header(path: Path) -> tuple[int, int, bytes]:
    """The bytes of the file, those of its header, and these."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise ModelError(f"{path} is truncated: its header is incomplete; download or copy it again")
        if length > _LONGEST_HEADER:
            raise ModelError(f"{path} is not a safetensors file: its header would take {length} bytes; download it again")
        return size, length, stream.read(length)


def _is_entry(entry: object) -> bool:
    """Whether it describes a tensor: its dtype, its shape, and where its bytes begin and end."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(shape) > _MOST_DIMENSIONS:
        return False
    whole = all(type(each) is int and 0 <= each <= _MOST for each in (*shape, *offsets))
    return whole and len(offsets) == 2 and offsets[0] <= offsets[1]


def stored_integers(path: Path, entry: Mapping[str, Any]) -> tuple[int, ...]:
    """The values of a tensor of 64-bit integers, such as a shape that is stored beside what was packed."""
    start, end = entry["data_offsets"]
    with path.open("rb") as stream:
        length = struct.unpack("<Q", stream.read(_LENGTH_BYTES))[0]
        stream.seek(_LENGTH_BYTES + length + start)
        count = (end - start) // 8
        return struct.unpack(f"<{count}q", stream.read(8 * count))


def as_written(tensors: Sequence[Stored]) -> list[Stored]:
    """Tensors in the order in which safetensors' own writer stores them: dtypes with the widest values first, then by name."""
    return sorted(tensors, key=lambda stored: (-_ORDER.index(stored[1]), stored[0]))


def header(tensors: Sequence[Stored]) -> bytes:
    """The start of a file: the header's length, then the header as JSON without spaces, padded to a multiple of 8."""
    entries: dict[str, object] = {**_METADATA}
    offset = 0
    for stored in tensors:
        name, dtype, shape = stored
        end = offset + stored_bytes(stored)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (offset, end)}
        offset = end
    body = json.dumps(entries, separators=(",", ":")).encode()
    body += b" " * (-len(body) % _LENGTH_BYTES)
    return len(body).to_bytes(_LENGTH_BYTES, "little") + body


def file_bytes(tensors: Sequence[Stored]) -> int:
    """The size of a file of these tensors."""
    return len(header(tensors)) + sum(map(stored_bytes, tensors))


def stored_bytes(stored: Stored) -> int:
    """The size of one tensor."""
    _, dtype, shape = stored
    return _ITEM_BYTES[dtype] * math.prod(shape)
