"""Models by name: built-in ones (one file or folder here each), local folders, ``.gguf`` files and hub ids."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantbench.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinModel:
    """A model that comes with quantbench: no download."""

    name: str
    about: str
    folder: Callable[[], Path]
    instrument_check: bool = False
    """Whether its figures only check the instrument and say nothing of real models."""


MODELS: Registry[BuiltinModel] = Registry("quantbench.models", BuiltinModel, "model")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def looks_like_path(name: str) -> bool:
    """Whether ``name`` is meant as a path rather than as a hub id."""
    return name.endswith(".gguf") or name.startswith((".", "/", "~")) or Path(name).exists()


def check_name(name: str) -> None:
    """Raise UsageError when ``name`` can be no model; needs no network, reads no weights."""
    if name in MODELS or (looks_like_path(name) and Path(name).expanduser().exists()):
        return
    if looks_like_path(name) or not _HUB_ID.fullmatch(name):
        from quantbench.errors import UsageError, unknown_name

        if looks_like_path(name):
            raise UsageError(f"model path {name!r} does not exist; give a checkpoint folder or a .gguf file")
        raise unknown_name("model", name, (model.name for model in MODELS))
