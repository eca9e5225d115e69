"""Import a library along with what it would import during loading, so that ``load_s`` times only the loading."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Collection, Mapping
from importlib.util import find_spec

_WITH: Mapping[str, tuple[str, ...]] = {
    # any one architecture pulls in modeling_utils, generation, and through them half of torch and scipy
    "transformers": ("transformers.models.auto.tokenization_auto", "transformers.models.llama.modeling_llama"),
}
SHARED = ("numpy", "torch", "transformers")
"""Imported once by the fork server, for all workers of runtimes that need torch."""

WITHOUT_TORCH: tuple[str, ...] = ()
"""The same for runtimes without torch. Their workers are not forks: torch's 320 MB or so would count as memory of each.

A fork maps only the pages of inherited libraries that it touches. It would look 6 MB smaller than a separate process, which is
a lot where such a runtime holds only a small model.
"""


def import_library(name: str) -> float:
    """Import ``name`` and its companions; seconds taken (almost none if they were imported before)."""
    started = time.perf_counter()
    for module in (name, *_WITH.get(name, ())):
        importlib.import_module(module)
    return time.perf_counter() - started


def keep_torch_out() -> None:
    """Keep torch out of this process for good.

    A runtime without torch needs transformers for its tokenizers, and transformers imports torch whenever it is installed.
    """
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to block an import


def is_without_torch() -> bool:
    """Whether torch is kept out of this process."""
    return "torch" in sys.modules and sys.modules["torch"] is None


def import_shared(libraries: Collection[str]) -> dict[str, float]:
    """Import those of the libraries that are installed; seconds by library."""
    return {name: import_library(name) for name in libraries if find_spec(name)}
