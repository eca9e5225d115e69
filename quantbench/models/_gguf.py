"""The files of a GGUF model: one, or the parts that llama.cpp's split tool numbers in their names."""

from __future__ import annotations

import re
from pathlib import Path

from quantbench.errors import ModelError

_MAGIC = b"GGUF"
_PART = re.compile(r"-(\d{5})-of-(?!00000)(\d{5})(?=\.gguf$)")


def part_names(name: str) -> list[str]:
    """Names of all parts of a split file, from the name of any of them; a whole file's own name."""
    found = _PART.search(name)
    if not found:
        return [name]
    count = found[2]
    return [f"{name[: found.start()]}-{number:05d}-of-{count}.gguf" for number in range(1, int(count) + 1)]


def gguf_parts(path: Path) -> list[Path]:
    """All files of the GGUF model whose first or only file is ``path``, in order.

    Raises ModelError for a later part, a part that is missing, and a file that is no GGUF.
    """
    parts = [path.with_name(name) for name in part_names(path.name)]
    if path != parts[0]:
        raise ModelError(f"{path} is a later part of a split GGUF file; give the first one, {parts[0].name}")
    for part in parts:
        if not part.is_file():
            raise ModelError(f"{path} lacks its part {part.name}; download or copy it again")
        with part.open("rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                raise ModelError(f"{part} is no GGUF file (its first bytes are not GGUF); download or copy it again")
    return parts
