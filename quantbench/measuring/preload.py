"""Import a library with what it would otherwise import while a model is loaded, so that ``load_s`` times loading."""

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
"""What the fork server imports once for all workers of runtimes that need torch."""

WITHOUT_TORCH: tuple[str, ...] = ()
"""The same for those that need none, whose workers are no forks: some 320 MB of torch would count as memory of each.

A fork maps only those pages of inherited libraries that it touches. So it would seem 6 MB smaller than a process of its own,
which is much where a small model is all that such a runtime holds.
"""


def import_library(name: str) -> float:
    """Import ``name`` and what belongs to it; seconds taken (next to none when it was imported before)."""
    started = time.perf_counter()
    for module in (name, *_WITH.get(name, ())):
        importlib.import_module(module)
    return time.perf_counter() - started


def keep_torch_out() -> None:
    """Keep torch out of this process for good.

    transformers, of which a runtime without torch needs the tokenizers, would import it just because it is installed.
    """
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to say that there is no such module


def is_without_torch() -> bool:
    """Whether torch is kept out of this process."""
    return "torch" in sys.modules and sys.modules["torch"] is None


def import_shared(libraries: Collection[str]) -> dict[str, float]:
    """Import those of the libraries that are installed; seconds by library."""
    return {name: import_library(name) for name in libraries if find_spec(name)}
