"""The GPU boards in use, as NVML knows them.

NVML is the driver's management library. Querying it opens no CUDA context and takes no device memory, so it works before a
model is opened, and for runtimes that torch does not know. Boards go by UUID: NVML's numbers are not CUDA's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from quantbench.core.errors import UsageError
from quantbench.core.gpus import chosen_gpus, open_nvml

_ON_CPU = "the model ran on the CPU"
_MILLI = 1e-3
MAPS = Path("/proc/self/maps")
_CUDA_DRIVER = "libcuda.so"

_NOTHING = (0, 6)
"""NVML's codes for success and "not found": no process used the board in the last sample period."""
_PERCENT = 0.01


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

    def free_bytes(self) -> list[int]:
        """Memory of each board that no process uses."""
        return [int(each.free) for each in self.ask(["nvmlDeviceGetMemoryInfo"])]

    def process_bytes(self, pids: Collection[int] = ()) -> int | None:
        """Memory on all boards that the driver attributes to these processes, by default this one; None if it lists none."""
        wanted = pids or (os.getpid(),)
        listed = [each for found in self.ask(["nvmlDeviceGetComputeRunningProcesses"]) for each in found]
        own = [int(each.usedGpuMemory) for each in listed if each.pid in wanted and each.usedGpuMemory]
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


@dataclass(slots=True)
class OthersOnGpu:
    """How busy other processes keep the GPU while a run is timed, as NVML samples it.

    Looks after each round; one NVML sample covers its last period, between 1/6 s and 1 s.
    """

    device: str
    _boards: Boards | str = field(init=False)
    _seen: list[float] = field(default_factory=list)
    _absent: str = ""
    _since_us: int = field(default_factory=lambda: time.time_ns() // 1000)

    def __post_init__(self) -> None:
        """Open the boards."""
        self._boards = open_boards(self.device)

    def look(self, own: Callable[[], Collection[int]]) -> None:
        """Note how busy processes other than ``own`` keep the boards; of several boards, the busiest counts."""
        if isinstance(self._boards, str) or self._absent:
            return
        pids = own()
        try:
            listed = self._boards.ask(["nvmlDeviceGetComputeRunningProcesses"])
            if not any(each.pid in pids for board in listed for each in board):
                self._absent = "NVML lists no process of this run (in a container their process ids differ)"
                return
            shares = [self._others(handle, pids) for handle in self._boards.handles]
        except OSError as error:
            self._absent = f"NVML does not say which processes use this GPU: {error}"
            return
        self._seen.append(max(shares))

    def share(self) -> float | str:
        """The mean share of time (0 to 1) over all looks; a string says why there is none."""
        if isinstance(self._boards, str):
            return self._boards
        return fmean(self._seen) if self._seen else self._absent or "use of the GPU was not sampled while this was timed"

    def _others(self, handle: Any, own: Collection[int]) -> float:
        """The sum of the others' use of one board, at most 1. OSError when NVML refuses."""
        assert isinstance(self._boards, Boards)
        try:
            samples = self._boards.library.nvmlDeviceGetProcessUtilization(handle, self._since_us)
        except Exception as error:  # not only NVMLError: an older driver's library lacks the function
            if getattr(error, "value", None) in _NOTHING:
                return 0.0
            raise OSError(str(error)) from error
        latest = {int(each.pid): int(each.smUtil) for each in sorted(samples, key=lambda each: int(each.timeStamp))}
        return min(1.0, _PERCENT * sum(use for pid, use in latest.items() if pid not in own))
