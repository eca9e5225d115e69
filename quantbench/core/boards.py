"""The GPU boards in use, as NVML knows them.

NVML is the driver's management library. Querying it opens no CUDA context and takes no device memory, so it works before a
model is opened, and for runtimes that torch does not know. Boards go by UUID: NVML's numbers are not CUDA's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantbench.core.errors import UsageError
from quantbench.core.gpus import chosen_gpus, open_nvml

_ON_CPU = "the model ran on the CPU"
_MILLI = 1e-3
MAPS = Path("/proc/self/maps")
_CUDA_DRIVER = "libcuda.so"


@dataclass(frozen=True, slots=True)
class Boards:
    """One or several boards. All methods raise OSError when NVML refuses."""

    library: Any
    handles: tuple[Any, ...]

    def ask(self, names: Iterable[str], *arguments: int) -> list[Any]:
        """The result for each board of the first of these calls that the driver supports."""
        refusal = ""
        for name in names:
            try:
                call = getattr(self.library, name)
                return [call(handle, *arguments) for handle in self.handles]
            except Exception as error:  # noqa: BLE001 - not only NVMLError: an older driver's library lacks functions
                refusal = refusal or str(error)
        raise OSError(refusal)

    def joules(self) -> float:
        """Energy of all boards since the driver was loaded."""
        return float(sum(self.ask(["nvmlDeviceGetTotalEnergyConsumption"]))) * _MILLI

    def used_bytes(self) -> int:
        """Memory in use on all boards, by any process."""
        return sum(int(each.used) for each in self.ask(["nvmlDeviceGetMemoryInfo"]))

    def process_bytes(self) -> int | None:
        """Memory on all boards that the driver attributes to this process; None if it lists none."""
        listed = [each for found in self.ask(["nvmlDeviceGetComputeRunningProcesses"]) for each in found]
        own = [int(each.usedGpuMemory) for each in listed if each.pid == os.getpid() and each.usedGpuMemory]
        return sum(own) if own else None


def open_boards(device: str) -> Boards | str:
    """The boards of ``device``: all visible ones for ``cuda``, each of several joined by ``+``; or a string saying why none."""
    places = [place for place in device.split("+") if place.startswith("cuda")]
    if not places:
        return _ON_CPU
    library = open_nvml()
    if isinstance(library, str):
        return library
    try:
        wanted = dict.fromkeys(gpu.uuid for place in places for gpu in chosen_gpus(place))
        return Boards(library, tuple(map(library.nvmlDeviceGetHandleByUUID, wanted)))
    except UsageError as error:
        return str(error)
    except library.NVMLError as error:
        return f"NVML cannot open this GPU: {error}"


def uses_cuda() -> bool:
    """Whether anything in this process has loaded the CUDA driver; True, to be safe, where that cannot be determined."""
    return _CUDA_DRIVER in MAPS.read_text() if MAPS.exists() else True
