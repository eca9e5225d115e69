"""Runtimes: one folder each. A runtime runs models; methods quantize for one, and open a LoadedModel on it.

To add a runtime, name a Runtime in the entry point group ``quantbench.runtimes``; methods refer to it by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quantbench.core.errors import UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.registry import Registry
from quantbench.models.architecture import Architecture
from quantbench.models.tokenizer import DECODER_FILE, Decoder, SavedDecoder, Tokenizer

_KERNEL_SAYS = ("out of memory", "cannot allocate memory", "can't allocate memory")
"""What an operating system says when memory has run out, in lower case."""


class Bytes(Protocol):
    """A formula for what ``batch`` sequences of ``context`` tokens take."""

    def __call__(self, architecture: Architecture, *, context: int, batch: int, dtype: str) -> int:
        """Bytes, with values in ``dtype`` (a key of ELEMENT_BYTES)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What differs between runtimes.

    ``packages`` are the distributions whose versions are recorded with every measurement. ``kv_cache_bytes`` and
    ``activation_bytes`` are None if its memory cannot be predicted; ``kv_dtype`` is that of keys and values, empty if it is the
    weights' own; with ``fills_context`` it allocates the whole context when a model is opened.

    ``out_of_memory`` are phrases, in lower case, by which it or a library below it reports that memory has run out.

    ``opens`` is the kind of checkpoint that it reads itself, empty if none; ``suffix`` is the ending of such a file's name,
    empty for a folder. ``read_architecture`` and ``read_precision`` read a file's header (the precision is empty where that
    cannot be told), ``files`` lists all parts of a model, ``tokenizer`` opens the checkpoint's own. ``read_template`` reads
    the chat template of a folder or a file, empty if it has none.

    With ``torch_free`` none of its libraries imports torch. With ``offloads`` a part of a model's layers may be on a GPU.
    """

    name: str
    about: str
    packages: tuple[str, ...] = ()
    kv_cache_bytes: Bytes | None = None
    activation_bytes: Bytes | None = None
    kv_dtype: str = ""
    fills_context: bool = False
    out_of_memory: tuple[str, ...] = ()
    opens: str = ""
    suffix: str = ""
    read_architecture: Callable[[Path], Architecture] | None = None
    read_precision: Callable[[Path], str] | None = None
    files: Callable[[Path], list[Path]] | None = None
    tokenizer: Callable[[Checkpoint], Tokenizer] | None = None
    read_template: Callable[[Path], str] | None = None
    torch_free: bool = False
    offloads: bool = False


RUNTIMES: Registry[Runtime] = Registry("quantbench.runtimes", Runtime, "runtime")


def says_out_of_memory(text: str) -> bool:
    """Whether a library's message says that memory ran out, on the host or on a GPU."""
    small = text.lower()
    return any(word in small for word in _KERNEL_SAYS) or any(word in small for each in RUNTIMES for word in each.out_of_memory)


def reader_of(path: Path) -> Runtime | None:
    """The runtime whose files have the suffix of ``path``; None for a folder or an unknown suffix."""
    return next((each for each in RUNTIMES if each.suffix and path.name.endswith(each.suffix)), None)


def model_file(folder: Path) -> tuple[Runtime, Path] | None:
    """The first model in ``folder`` that is a file of a runtime's own kind, and that runtime; None if there is none."""
    for each in RUNTIMES:
        if each.suffix and (found := sorted(folder.glob(f"*{each.suffix}"))):
            return each, found[0]
    return None


def parts_of(path: Path) -> list[Path]:
    """All files of a model whose only or first file is ``path``."""
    reader = reader_of(path)
    return reader.files(path) if reader and reader.files else [path]


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint, opened by the runtime that reads its kind; UnsupportedError if none does."""
    for each in RUNTIMES:
        if each.opens == checkpoint.kind and each.tokenizer:
            return each.tokenizer(checkpoint)
    raise UnsupportedError(f"{checkpoint.name} has no tokenizer that can be opened here; give a checkpoint folder or a file")


def has_template(path: Path) -> bool:
    """Whether a model's folder or file has a chat template. ModelError where it cannot be read."""
    folders = next((each for each in RUNTIMES if each.opens and not each.suffix), None)
    reader = folders if path.is_dir() else reader_of(path)
    return bool(reader and reader.read_template and reader.read_template(path))


def open_decoder(checkpoint: Checkpoint, reference: Path | None) -> Decoder:
    """The decoder that a ``reference`` of the checkpoint saved, or else the checkpoint's tokenizer."""
    saved = reference / DECODER_FILE if reference else None
    if saved is None or not saved.is_file():
        return open_tokenizer(checkpoint)
    body = json.loads(saved.read_text())
    return SavedDecoder(frozenset(body["ends"]), body["backend"])


def packages() -> Iterable[str]:
    """The distributions of all runtimes, each once."""
    return dict.fromkeys(name for each in RUNTIMES for name in each.packages)
