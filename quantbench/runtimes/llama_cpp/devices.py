"""The devices that llama.cpp may use: only the requested GPUs, by CUDA's numbers in this process."""

from __future__ import annotations

import ctypes
import os
import re
from typing import Any

from quantbench.core.errors import ModelError

_SPILLS = "GGML_CUDA_ENABLE_UNIFIED_MEMORY"
"""The environment variable that lets llama.cpp move weights to host memory instead of running out."""

_CUDA = re.compile(r"CUDA(\d+)")


def devices_for(library: Any, device: str) -> ctypes.Array[ctypes.c_void_p]:
    """llama.cpp's own list of the devices that ``device`` stands for, ended by a null; it is empty for the CPU.

    ``library`` is ggml. With no list llama.cpp would take every GPU there is, and move large batches there even for the CPU.
    Raises ModelError if there is no such GPU, this build has no CUDA, or it may use the host's memory instead.
    """
    if device == "cpu":
        return (ctypes.c_void_p * 1)()
    if os.environ.get(_SPILLS):
        raise ModelError(f"with {_SPILLS} llama.cpp silently moves to the host what does not fit on a GPU; unset it")
    found = {int(match[1]): pointer for name, pointer in _devices(library) if (match := _CUDA.fullmatch(name))}
    number = device.partition(":")[2]
    wanted = [int(number)] if number else sorted(found)
    if not wanted or wanted[-1] not in found:
        raise ModelError(f"device {device!r} was asked for and {_why_not(library, len(found))}")
    return (ctypes.c_void_p * (len(wanted) + 1))(*(found[each] for each in wanted))


def _devices(library: Any) -> list[tuple[str, int]]:
    """Names of ggml's devices, and pointers to them."""
    library.ggml_backend_dev_count.restype = ctypes.c_size_t
    library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    library.ggml_backend_dev_get.restype = ctypes.c_void_p
    library.ggml_backend_dev_name.argtypes = [ctypes.c_void_p]
    library.ggml_backend_dev_name.restype = ctypes.c_char_p
    pointers = [library.ggml_backend_dev_get(index) for index in range(library.ggml_backend_dev_count())]
    return [(library.ggml_backend_dev_name(pointer).decode(), pointer) for pointer in pointers]


def _why_not(library: Any, count: int) -> str:
    library.ggml_backend_reg_by_name.argtypes = [ctypes.c_char_p]
    library.ggml_backend_reg_by_name.restype = ctypes.c_void_p
    if library.ggml_backend_reg_by_name(b"CUDA"):
        return f"llama.cpp sees {count or 'no'} GPUs; ask for one of them, or look at CUDA_VISIBLE_DEVICES and the driver"
    return (
        "this llama-cpp-python was built without CUDA; install it again with CMAKE_ARGS='-DGGML_CUDA=on' and "
        "--no-binary llama-cpp-python --force-reinstall, or ask for cpu"
    )
