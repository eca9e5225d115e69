"""Limits gptqmodel on a GPU to kernels whose CUDA code compiles, and compiles them before anything is timed.

gptqmodel 7.6 compiles a kernel when a model is loaded, and chooses some without checking that they compile: loading would then
fail, or take minutes that count as load time. For its CUTLASS kernels it downloads the sources first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

COMPILED: Mapping[str, str] = {"gptq_marlin": "marlin_fp16", "awq_marlin": "marlin_fp16"}
"""The extension that holds a kernel's code for the dtype that models are loaded in, by gptqmodel's name of the kernel."""

OF_CUTLASS: Mapping[str, str] = {
    "gptq_machete": "machete", "awq_machete": "machete", "gptq_swordfish": "swordfish", "awq_swordfish": "swordfish",
}  # fmt: skip
"""The same for kernels that are left out unless their sources are on this machine."""

_SOURCES = "GPTQMODEL_CUTLASS_DIR"
"""Where gptqmodel looks for them."""


@cache
def compile_kernels(method: str) -> None:
    """Compile the kernels that gptqmodel may choose for a method, in this process; those that do not compile are left out.

    Otherwise the choice is gptqmodel's: the first kernel that suits the device, or in the end plain torch.
    """
    from gptqmodel import extension
    from gptqmodel.utils.importer import AUTO_BACKEND_KERNEL_MAPPING

    wanted = {**COMPILED, **(OF_CUTLASS if os.environ.get(_SOURCES) else {})}
    ready = {name for name, code in wanted.items() if name.startswith(f"{method}_") and _is_ready(extension, code)}
    for offered in AUTO_BACKEND_KERNEL_MAPPING[method].values():
        for backend in [each for each in offered if each.value in {*COMPILED, *OF_CUTLASS} - ready]:
            del offered[backend]


def _is_ready(extension: Any, code: str) -> bool:
    try:
        return bool(extension.is_available(code))
    except Exception:  # noqa: BLE001 - whatever a compiler or a network says: there are other kernels
        return False
