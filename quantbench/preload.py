"""Import a library with what it would otherwise import while a model is loaded, so that ``load_s`` times loading."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from importlib.util import find_spec

_WITH: Mapping[str, tuple[str, ...]] = {
    # any one architecture pulls in modeling_utils, generation, and through them half of torch and scipy
    "transformers": ("transformers.models.auto.tokenization_auto", "transformers.models.llama.modeling_llama"),
}
SHARED = ("numpy", "torch", "transformers")
"""What the fork server imports once for all workers."""


def import_library(name: str) -> float:
    """Import ``name`` and what belongs to it; seconds taken (next to none when it was imported before)."""
    started = time.perf_counter()
    for module in (name, *_WITH.get(name, ())):
        importlib.import_module(module)
    return time.perf_counter() - started


def import_shared() -> dict[str, float]:
    """Import the shared libraries that are installed; seconds by library."""
    return {name: import_library(name) for name in SHARED if find_spec(name)}
