"""The GPUs of this machine, and which of them this process may use, from NVML, the driver's management library.

Nothing here opens CUDA or takes device memory.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from quantbench.core.errors import UsageError

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_ORDER = "CUDA_DEVICE_ORDER"
_BY_BUS = "PCI_BUS_ID"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU, or a part of one, by the ``uuid`` that NVML knows it by; ``memory_bytes`` is None where no figure is told."""

    name: str
    uuid: str
    memory_bytes: int | None
    driver: str


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs that this process may use, as CUDA numbers them in bus order: those that ``CUDA_VISIBLE_DEVICES`` leaves.

    It may name GPUs by number or UUID, and parts of them by UUID.
    """
    found, _ = _known_gpus()
    visible = os.environ.get(_VISIBLE)
    if visible is None:
        return found
    chosen: list[Gpu] = []
    for wanted in map(str.strip, visible.split(",")):
        named = [gpu for number, gpu in enumerate(found) if wanted == str(number)]
        if wanted.startswith(("GPU-", "MIG-")):
            among = found if wanted.startswith("GPU-") else _parts()
            named = [gpu for gpu in among if gpu.uuid.startswith(wanted)]
        if len(named) != 1:  # CUDA itself ends at the first that it cannot find
            break
        if named[0] in chosen:  # and has none where one is named twice
            return ()
        chosen += named
    return tuple(chosen)


def no_gpu() -> str:
    """Why this process can use no GPU, as half a sentence; empty where it can."""
    if visible_gpus():
        return ""
    found, why = _known_gpus()
    return f"{_VISIBLE}={os.environ[_VISIBLE]} hides {_counted(len(found))}" if found else why


def chosen_gpus(device: str) -> tuple[Gpu, ...]:
    """The GPUs behind ``cuda``, all that this process may use, or ``cuda:N``; UsageError where there is none such."""
    asked = f"device {device!r} was asked for and"
    if why := no_gpu():
        raise UsageError(f"{asked} {why}; use cpu, or run where a GPU is to be had")
    gpus, number = visible_gpus(), device.partition(":")[2]
    if int(number or 0) >= len(gpus):
        names = ", ".join(f"cuda:{index} ({gpu.name})" for index, gpu in enumerate(gpus))
        hiding = f" with {_VISIBLE}={os.environ[_VISIBLE]}" if _VISIBLE in os.environ else ""
        raise UsageError(f"{asked} there are no more GPUs than {names}{hiding}; use one of these, or cpu")
    order = os.environ.get(_ORDER, _BY_BUS)
    if order != _BY_BUS and len({gpu.name for gpu in gpus}) > 1:
        raise UsageError(f"{asked} {_ORDER}={order} numbers GPUs in an order that only CUDA knows; set it to {_BY_BUS}")
    return (gpus[int(number)],) if number else gpus


def number_gpus_by_bus() -> None:
    """Let CUDA number GPUs as nvidia-smi does, in this process and in all that it starts, unless another order was asked for.

    CUDA's own order is by speed; gptqmodel asks for the bus's when it is imported. A number must be one GPU to all methods.
    """
    os.environ.setdefault(_ORDER, _BY_BUS)


def open_nvml() -> Any:
    """NVML as nvidia-ml-py wraps it; a string says why there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except (OSError, pynvml.NVMLError) as error:
        return f"NVML cannot be opened: {error}"
    return pynvml


def _counted(gpus: int) -> str:
    return "1 GPU" if gpus == 1 else f"{gpus} GPUs"


def _known_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Every GPU of this machine in the bus's order, hidden or not; where there is none, why, as half a sentence."""
    library = open_nvml()
    if isinstance(library, str):
        return (), f"no GPU was found: {library}"
    try:
        found = tuple(_gpu(library, handle) for handle in _handles(library))
    except library.NVMLError as error:
        return (), f"NVML refuses to list GPUs ({error})"
    return found, "" if found else "NVML lists no GPU"


def _parts() -> tuple[Gpu, ...]:
    """The parts (MIG) that GPUs were divided into."""
    library = open_nvml()
    if isinstance(library, str):
        return ()
    found: list[Gpu] = []
    with suppress(library.NVMLError):  # a driver that knows no parts
        for whole in _handles(library):
            for number in range(library.nvmlDeviceGetMaxMigDeviceCount(whole)):
                with suppress(library.NVMLError):  # fewer were made than could be
                    found.append(_gpu(library, library.nvmlDeviceGetMigDeviceHandleByIndex(whole, number)))
    return tuple(found)


def _handles(library: Any) -> list[Any]:
    return [library.nvmlDeviceGetHandleByIndex(number) for number in range(library.nvmlDeviceGetCount())]


def _gpu(library: Any, handle: Any) -> Gpu:
    try:
        memory_bytes = int(library.nvmlDeviceGetMemoryInfo(handle).total)
    except library.NVMLError:
        memory_bytes = None
    return Gpu(
        name=library.nvmlDeviceGetName(handle), uuid=library.nvmlDeviceGetUUID(handle), memory_bytes=memory_bytes,
        driver=library.nvmlSystemGetDriverVersion(),
    )  # fmt: skip
