"""The GPUs of this machine and those that this process may use, according to NVML, the driver's management library.

Nothing here opens a CUDA context or takes device memory.
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
    """A GPU or a MIG part of one, with its NVML ``uuid``; ``memory_bytes`` is None if NVML gives no figure."""

    name: str
    uuid: str
    memory_bytes: int | None
    driver: str


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves this process, in CUDA's order by bus.

    The variable may name GPUs by number or UUID, and MIG parts by UUID.
    """
    known, _ = _known_gpus()
    visible = os.environ.get(_VISIBLE)
    if visible is None:
        return known
    chosen: list[Gpu] = []
    for entry in map(str.strip, visible.split(",")):
        matches = [gpu for number, gpu in enumerate(known) if entry == str(number)]
        if entry.startswith(("GPU-", "MIG-")):
            candidates = known if entry.startswith("GPU-") else _parts()
            matches = [gpu for gpu in candidates if gpu.uuid.startswith(entry)]
        if len(matches) != 1:  # CUDA, too, ignores the first entry that it cannot find and all after it
            break
        if matches[0] in chosen:  # and shows no GPU at all if one is named twice
            return ()
        chosen += matches
    return tuple(chosen)


def no_gpu() -> str:
    """Why this process cannot use a GPU, as half a sentence; empty if it can."""
    if visible_gpus():
        return ""
    found, why = _known_gpus()
    return f"{_VISIBLE}={os.environ[_VISIBLE]} hides {_counted(len(found))}" if found else why


def chosen_gpus(device: str) -> tuple[Gpu, ...]:
    """The GPU of ``cuda:N``, or for ``cuda`` all that this process may use; UsageError if there is no such GPU."""
    asked = f"device {device!r} was requested, but"
    if why := no_gpu():
        raise UsageError(f"{asked} {why}; use cpu, or run on a machine with a GPU")
    gpus, number = visible_gpus(), device.partition(":")[2]
    if int(number or 0) >= len(gpus):
        names = ", ".join(f"cuda:{index} ({gpu.name})" for index, gpu in enumerate(gpus))
        hiding = f" with {_VISIBLE}={os.environ[_VISIBLE]}" if _VISIBLE in os.environ else ""
        raise UsageError(f"{asked} the only GPUs are {names}{hiding}; use one of these, or cpu")
    order = os.environ.get(_ORDER, _BY_BUS)
    if order != _BY_BUS and len({gpu.name for gpu in gpus}) > 1:
        raise UsageError(f"{asked} {_ORDER}={order} numbers GPUs in an order that only CUDA knows; set it to {_BY_BUS}")
    return (gpus[int(number)],) if number else gpus


def number_gpus_by_bus() -> None:
    """Make CUDA number GPUs as nvidia-smi does, in this process and its children, unless the user has set another order.

    CUDA's default order is by speed, and gptqmodel sets the bus order on import. A number must mean one GPU to every method.
    """
    os.environ.setdefault(_ORDER, _BY_BUS)


def open_nvml() -> Any:
    """The NVML library of nvidia-ml-py; a string says why it is unavailable."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except (OSError, pynvml.NVMLError) as error:
        return f"NVML cannot be opened: {error}"
    return pynvml


def _counted(gpus: int) -> str:
    return "1 GPU" if gpus == 1 else f"{gpus} GPUs"


def _known_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Every GPU of this machine in bus order, hidden or not; if there is none, why, as half a sentence."""
    library = open_nvml()
    if isinstance(library, str):
        return (), f"no GPU was found: {library}"
    try:
        found = tuple(_gpu(library, handle) for handle in _handles(library))
    except library.NVMLError as error:
        return (), f"NVML cannot list GPUs ({error})"
    return found, "" if found else "NVML lists no GPU"


def _parts() -> tuple[Gpu, ...]:
    """The MIG parts that GPUs are divided into."""
    library = open_nvml()
    if isinstance(library, str):
        return ()
    found: list[Gpu] = []
    with suppress(library.NVMLError):  # a driver without MIG
        for whole in _handles(library):
            for number in range(library.nvmlDeviceGetMaxMigDeviceCount(whole)):
                with suppress(library.NVMLError):  # fewer parts exist than the maximum
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
