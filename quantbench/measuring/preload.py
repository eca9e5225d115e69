"""Import a library along with what it would import during loading, so that ``load_s`` times only the loading."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

from quantbench.core.environment import environment

_WITH: Mapping[str, tuple[str, ...]] = {
    # any one architecture pulls in modeling_utils, generation, and through them half of torch and scipy
    "transformers": ("transformers.models.auto.tokenization_auto", "transformers.models.llama.modeling_llama"),
}
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_REMEMBERED: Mapping[str, tuple[str, ...]] = {
    "torch.utils._triton": ("has_triton",),
    "transformers.utils.import_utils": (
        "is_torch_cuda_available", "is_flash_attn_2_available", "is_flash_attn_3_available", "is_flash_attn_4_available",
    ),
}
"""Functions that keep their answer to whether there is a GPU: of those that imports call, found by listing filled caches."""

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
    """Import those of the libraries that are installed, with GPUs hidden; seconds by library.

    Else an import might open CUDA, and then no child that is forked could use it: with torchao installed, transformers asks for
    the GPU's generation when it is imported (torchao 0.18, prototype/mx_formats/kernels.py: has_triton, is_sm_at_least_100).
    What stays of it: torchao leaves out kernels of its MX formats, which are only emulated here.
    """
    with _gpus_hidden():
        return {name: import_library(name) for name in libraries if find_spec(name)}


def forks_may_use_gpus() -> bool:
    """Whether a child that is forked now may use CUDA, as torch sees it there.

    torch marks such children from the first question to the CUDA runtime on, also a mere count of GPUs where NVML did not
    answer (pthread_atfork in torch/csrc/cuda/Module.cpp), and only they can be asked: in the parent nothing shows.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return True
    child = os.fork()
    if child == 0:
        os._exit(int(torch.cuda._is_in_bad_fork()))  # noqa: SLF001 - it has no public name
    return os.waitpid(child, 0)[1] == 0


@contextmanager
def _gpus_hidden() -> Iterator[None]:
    """Inside this context libraries see no GPU; what they remember of that is forgotten at its end."""
    try:
        # torch counts anew each time until CUDA is open (torch 2.13, cuda/__init__.py: device_count)
        with environment({_VISIBLE: ""}):
            yield
    finally:
        for module, names in _REMEMBERED.items():
            for name in names if module in sys.modules else ():
                if forget := getattr(getattr(sys.modules[module], name, None), "cache_clear", None):
                    forget()
