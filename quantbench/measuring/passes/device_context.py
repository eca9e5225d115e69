"""CUDA's context: made on purpose before a library is imported, so that what it takes is known and counts for no variant.

Each process has one primary context a GPU, which the driver keeps some hundred MB for. Some libraries make it when they are
imported, others when a model is opened; so its bytes counted for some methods and not for others. All runtimes share it, since
"the primary context is unique per device and shared with the CUDA runtime API" (cuda.h of CUDA 13.0, Primary Context
Management): torch, bitsandbytes and llama.cpp find the one that was made here. The driver makes it without torch, which not
every worker has.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from quantbench.core.boards import Boards, open_boards, uses_cuda

_DRIVER = "libcuda.so.1"
_MADE_BEFORE = "this process had CUDA's context before: an import or an earlier job had made it"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceContext:
    """The boards of a device, or why NVML cannot read them, and what they gave away for CUDA's context, or why that is unknown.

    ``stranger`` means that the driver lists another process under this one's number.
    """

    boards: Boards | str
    context_bytes: int | str
    stranger: bool = False


def make_context(device: str) -> DeviceContext:
    """Make CUDA's context on every GPU that ``device`` stands for. On the CPU nothing is opened."""
    boards = open_boards(device)
    if not device.startswith("cuda"):
        return DeviceContext(boards=boards, context_bytes=str(boards))
    stranger, before = False, 0
    try:
        if isinstance(boards, Boards):
            with suppress(OSError):
                stranger = boards.process_bytes() is not None and not uses_cuda()
            before = boards.used_bytes()
        found: int | str = _make(device)
        if isinstance(boards, Boards) and not found:
            found = boards.used_bytes() - before
    except OSError as error:
        found = str(error)
    return DeviceContext(boards=boards, context_bytes=boards if isinstance(boards, str) else found, stranger=stranger)


def _make(device: str) -> str:
    """Make the contexts; says why their bytes cannot be told where one was there before. OSError where the driver refuses."""
    try:
        library = ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise OSError(f"CUDA's driver cannot be opened: {error}") from error

    def call(name: str, *arguments: Any) -> None:
        if code := getattr(library, name)(*arguments):
            raise OSError(f"CUDA's context could not be made: {name} failed with error {code}")

    call("cuInit", 0)
    before = False
    for gpu in _gpus(device, call):
        flags, active, context = ctypes.c_uint(), ctypes.c_int(), ctypes.c_void_p()
        call("cuDevicePrimaryCtxGetState", gpu, ctypes.byref(flags), ctypes.byref(active))
        before = before or bool(active.value)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), gpu)  # for good: it is the process's
    return _MADE_BEFORE if before else ""


def _gpus(device: str, call: Callable[..., None]) -> Iterator[ctypes.c_int]:
    """The driver's handles of the GPUs; it counts those that CUDA_VISIBLE_DEVICES leaves."""
    number, count = device.partition(":")[2], ctypes.c_int()
    if not number:
        call("cuDeviceGetCount", ctypes.byref(count))
    for each in [int(number)] if number else range(count.value):
        gpu = ctypes.c_int()
        call("cuDeviceGet", ctypes.byref(gpu), each)
        yield gpu
