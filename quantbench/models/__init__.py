"""Models by name: built-in ones (one file or folder here each), local folders, ``.gguf`` files, hub ids and servers.

A hub id is ``ORG/REPO[@REVISION]``, or ``ORG/REPO[@REVISION]:TYPE`` for one GGUF file, for example ``:Q4_K_M``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantbench.registry import Registry
from quantbench.scenario import parse_server


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRecipe:
    """A module without tokens: ``build`` makes the torch.nn.Module, with the same float32 weights every time.

    ``example`` gives the seeded input of a seed and an index: a tensor, of which the module makes a tensor.
    """

    build: Callable[[], Any]
    example: Callable[[int, int], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinModel:
    """A model that comes with quantbench: no download. ``module`` where it is no checkpoint but a module without tokens."""

    name: str
    about: str
    folder: Callable[[], Path]
    module: ModuleRecipe | None = None
    instrument_check: bool = False
    """Whether its figures only check the instrument and say nothing of real models."""


MODELS: Registry[BuiltinModel] = Registry("quantbench.models", BuiltinModel, "model")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w.-]+)?")


def is_module(name: str) -> bool:
    """Whether ``name`` is a built-in module without tokens."""
    return name in MODELS and MODELS[name].module is not None


def looks_like_path(name: str) -> bool:
    """Whether ``name`` is meant as a path rather than as a hub id."""
    return name.endswith(".gguf") or name.startswith((".", "/", "~")) or Path(name).exists()


def is_server(name: str) -> bool:
    """Whether ``name`` is meant as the URL of a server that serves the model."""
    return name.startswith(("http://", "https://"))


def check_name(name: str) -> None:
    """Raise UsageError when ``name`` can be no model; needs no network, reads no weights."""
    if is_server(name):
        parse_server(name)
        return
    if name in MODELS or (looks_like_path(name) and Path(name).expanduser().exists()):
        return
    if looks_like_path(name) or not _HUB_ID.fullmatch(name):
        from quantbench.errors import UsageError, unknown_name

        if looks_like_path(name):
            raise UsageError(f"model path {name!r} does not exist; give a checkpoint folder or a .gguf file")
        raise unknown_name("model", name, (model.name for model in MODELS))
