"""Models by name: built-in ones (a file or folder each), local folders, ``.gguf`` files, hub ids and servers.

A hub id is ``ORG/REPO[@REVISION]``, or ``ORG/REPO[@REVISION]:TYPE`` for one GGUF file, for example ``:Q4_K_M``; the path of a
file without ``.gguf`` may stand in place of the type.
``dummy:NAME_OR_CONFIG`` is a configuration with random weights: a built-in one, a folder, a config.json or a hub id.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantbench.core.outside import exists, expanded
from quantbench.core.registry import Registry
from quantbench.core.scenario import DUMMY_PREFIX, parse_server


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRecipe:
    """A module without tokens: ``build`` makes the torch.nn.Module, with the same float32 weights every time.

    ``example`` makes the input tensor for a seed and an index; the module returns a tensor.
    """

    build: Callable[[], Any]
    example: Callable[[int, int], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinModel:
    """A model that ships with quantbench, without a download. ``module`` is set for a module without tokens."""

    name: str
    about: str
    folder: Callable[[], Path]
    module: ModuleRecipe | None = None
    instrument_check: bool = False
    """Whether its figures only check the instrument and say nothing about real models."""


MODELS: Registry[BuiltinModel] = Registry("quantbench.models.builtin", BuiltinModel, "model", group="quantbench.models")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w.-]+(/[\w.-]+)*)?")


def is_module(name: str) -> bool:
    """Whether ``name`` is a built-in module without tokens."""
    return name in MODELS and MODELS[name].module is not None


def looks_like_path(name: str) -> bool:
    """Whether ``name`` is meant as a path rather than as a hub id."""
    return name.endswith(".gguf") or name.startswith((".", "/", "~")) or exists(name)


def is_server(name: str) -> bool:
    """Whether ``name`` is meant as the URL of a server that serves the model."""
    return name.startswith(("http://", "https://"))


def is_dummy(name: str) -> bool:
    """Whether ``name`` asks for a real architecture with random weights."""
    return name.startswith(DUMMY_PREFIX)


def is_hub_id(name: str) -> bool:
    """Whether ``name`` looks like a checkpoint on the hub."""
    return ":" not in name and _HUB_ID.fullmatch(name) is not None


def dummy_configs() -> dict[str, Path]:
    """Published config.json files of well-known models, by name: a dummy can be made from one without a download."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "configs").glob("*.json"))}


def check_name(name: str) -> None:
    """Raise UsageError if ``name`` cannot be a model; needs no network and reads no weights."""
    if is_server(name):
        parse_server(name)
        return
    if is_dummy(name):
        _check_dummy(name.removeprefix(DUMMY_PREFIX))
        return
    if name in MODELS or (looks_like_path(name) and exists(expanded(name))):
        return
    if looks_like_path(name) or not _HUB_ID.fullmatch(name):
        from quantbench.core.errors import UsageError, unknown_name

        if looks_like_path(name):
            raise UsageError(f"model path {name!r} does not exist; give a checkpoint folder or a .gguf file")
        raise unknown_name("model", name, (model.name for model in MODELS))


def _check_dummy(wanted: str) -> None:
    from quantbench.core.errors import UsageError, unknown_name

    if wanted in dummy_configs() or (wanted and looks_like_path(wanted) and exists(expanded(wanted))):
        return
    if wanted and looks_like_path(wanted):
        raise UsageError(f"dummy path {wanted!r} does not exist; give a config.json, or a folder that holds one")
    if not is_hub_id(wanted):
        raise unknown_name("dummy", wanted, dummy_configs())
