"""Limits gptqmodel on a GPU to kernels whose CUDA code compiles, and compiles what is needed before anything is timed.

gptqmodel 7.6 compiles a kernel when a model is loaded, and chooses some without checking that they compile: loading would then
fail, or take minutes that count as load time. It also compiles some that cannot be chosen: a kernel is asked whether it is
ready (``validate_once``) before it is asked for its bits. For its CUTLASS kernels it downloads the sources first. Its quantizer
compiles too: what packs layers, and on a GPU what updates blocks of GPTQ.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

COMPILED: Mapping[str, str] = {
    "gptq_marlin": "marlin_fp16", "awq_marlin": "marlin_fp16", "gptq_exllama_v2": "exllamav2",
    "awq_exllama_v2": "exllamav2_awq", "awq_gemm": "awq",
}  # fmt: skip
"""The extension that holds a kernel's code for the dtype that models are loaded in, by gptqmodel's name of the kernel."""

OF_CUTLASS: Mapping[str, str] = {
    "gptq_machete": "machete", "awq_machete": "machete", "gptq_swordfish": "swordfish", "awq_swordfish": "swordfish",
}  # fmt: skip
"""The same for kernels that are left out unless their sources are on this machine."""

PACKS = "pack_block_cpu"
"""The extension that packs GPTQ's layers of 2, 4 and 8 bits (gptqmodel 7.6, nn_modules/qlinear/__init__.py: pack_block)."""

_SOURCES = "GPTQMODEL_CUTLASS_DIR"
"""Where gptqmodel looks for them."""

_offered: dict[tuple[str, str], dict[Any, Any]] = {}
"""Every kernel that gptqmodel offers for a method and a layout, in its order."""


def compile_kernels(method: str, quantization: Mapping[str, Any]) -> None:
    """Compile the kernel that gptqmodel will choose for a checkpoint with this ``quantization_config``, in this process.

    It walks gptqmodel's order: kernels that cannot hold these weights, or do not compile, are left out; the first that is ready
    ends the walk, and those after it are not compiled. In the end there is plain torch.
    """
    from gptqmodel.utils.importer import AUTO_BACKEND_KERNEL_MAPPING

    layout = quantization.get("checkpoint_format") or quantization.get("version") or quantization.get("format")
    for name, kernels in AUTO_BACKEND_KERNEL_MAPPING[method].items():
        if layout in (None, name):
            every = _offered.setdefault((method, str(name)), dict(kernels))
            kernels.clear()
            kernels.update(_left(every, _asked(method, quantization)))


def compile_for_quantizing(method: str, bits: int, device: str) -> None:
    """Compile what quantizing would, so that its time is that of quantizing; what does not compile has a slower stand-in."""
    if method != "gptq":
        return
    if bits in (2, 4, 8):
        is_ready(PACKS)
    if device != "cpu":
        from gptqmodel.quantization.gptq_cuda import block_update_available

        with suppress(Exception):  # whatever a compiler says: it goes on without
            block_update_available()


@cache
def is_ready(code: str) -> bool:
    """Whether an extension of gptqmodel is compiled and loaded now."""
    from gptqmodel import extension

    try:
        return bool(extension.is_available(code))
    except Exception:  # noqa: BLE001 - whatever a compiler or a network says: there are other kernels
        return False


def _asked(method: str, quantization: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers' and optimum's calls of gptqmodel ask of a kernel for this checkpoint."""
    import torch

    awq = method == "awq"
    return {
        "bits": int(quantization["bits"]),
        "group_size": int(quantization["group_size"]),
        "desc_act": not awq and bool(quantization.get("desc_act", False)),
        "sym": not quantization.get("zero_point", True) if awq else bool(quantization.get("sym", True)),
        "pack_dtype": torch.int32,
        "device": torch.device("cuda"),
    }


def _left(every: Mapping[Any, Any], asked: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """The kernels to choose from, by gptqmodel's name, in its order."""
    from gptqmodel.utils.importer import validate_quant_linear

    chosen = False
    for backend, kernel in every.items():
        if not {"cuda", "all"} & {str(each.value) for each in kernel.SUPPORTS_DEVICES}:
            yield backend, kernel  # which gptqmodel passes over
            continue
        if not _could_hold(kernel, asked) or (backend.value in OF_CUTLASS and not os.environ.get(_SOURCES)):
            continue
        code = {**COMPILED, **OF_CUTLASS}.get(backend.value)
        chosen = chosen or ((code is None or is_ready(code)) and bool(validate_quant_linear(kernel, **asked)[0]))
        if chosen:
            yield backend, kernel


def _could_hold(kernel: Any, asked: Mapping[str, Any]) -> bool:
    """Whether a kernel's own declarations allow these weights."""
    return (
        asked["bits"] in kernel.SUPPORTS_BITS
        and asked["group_size"] in kernel.SUPPORTS_GROUP_SIZE
        and asked["sym"] in kernel.SUPPORTS_SYM
    )
