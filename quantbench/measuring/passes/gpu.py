"""What NVML says of the GPU boards in use: memory, energy, clocks, and why clocks were held back.

NVML is the driver's management library. Asking it opens no CUDA and takes no device memory, so that it may be asked before a
model is opened, and of runtimes that torch knows nothing of. Boards go by UUID: NVML's numbers are not CUDA's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from quantbench.core.errors import UsageError
from quantbench.core.gpus import chosen_gpus, open_nvml
from quantbench.core.trace import Clocks

_ON_CPU = "the model ran on the CPU"
_MILLI = 1e-3
_NANO = 1e-9
_MAPS = Path("/proc/self/maps")
_CUDA_DRIVER = "libcuda.so"

_SM, _MEMORY = 1, 2
"""NVML's numbers of clocks."""

_POWER, _THERMAL = 0, 1
"""NVML's numbers of policies that hold clocks back."""

_CORE = 0
"""NVML's number of the sensor on the chip."""

_REASONS = {
    0x4: "sw_power_cap", 0x8: "hw_slowdown", 0x10: "sync_boost", 0x20: "sw_thermal", 0x40: "hw_thermal", 0x80: "hw_power_brake",
    0x200: "board_limit", 0x400: "reliability",
}  # fmt: skip
_NO_THROTTLING = 0x1 | 0x2 | 0x100
"""Idle, and clocks that somebody set on purpose."""

_EACH_ROUND: Mapping[str, tuple[tuple[str, ...], tuple[int, ...], Callable[[Iterable[int]], int]]] = {
    "sm_mhz": (("nvmlDeviceGetClockInfo",), (_SM,), min),
    "throttling": (
        ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
        (),
        lambda seen: reduce(or_, seen),
    ),
    "memory_mhz": (("nvmlDeviceGetClockInfo",), (_MEMORY,), min),
    "temperature_c": (("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"), (_CORE,), max),
}
"""By figure: calls that tell it (an older driver has the second only), their arguments, and which of several boards counts."""


@dataclass(frozen=True, slots=True)
class Boards:
    """One or several boards. All methods raise OSError when NVML refuses."""

    library: Any
    handles: tuple[Any, ...]

    def ask(self, names: Iterable[str], *arguments: int) -> list[Any]:
        """What the first of these calls that the driver knows says of each board."""
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
        """Memory that all boards have given away, to whomever."""
        return sum(int(each.used) for each in self.ask(["nvmlDeviceGetMemoryInfo"]))

    def process_bytes(self) -> int | None:
        """Memory that the driver lists as this process's, on all boards; None where it lists none."""
        listed = [each for found in self.ask(["nvmlDeviceGetComputeRunningProcesses"]) for each in found]
        own = [int(each.usedGpuMemory) for each in listed if each.pid == os.getpid() and each.usedGpuMemory]
        return sum(own) if own else None


def open_boards(device: str) -> Boards | str:
    """The boards of ``device``, all visible ones for ``cuda``, or of places joined by ``+``; a string says why none."""
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
        return f"NVML does not open this GPU: {error}"


def uses_cuda() -> bool:
    """Whether something in this process has loaded CUDA's driver; it is on the safe side where nobody can tell."""
    return _CUDA_DRIVER in _MAPS.read_text() if _MAPS.exists() else True


@dataclass(slots=True)
class ClockWatch:
    """Looks at the boards' clocks between rounds; never while one is timed.

    What a board does not tell costs that figure alone.
    """

    device: str
    _boards: Boards | str = field(init=False)
    _seen: dict[str, list[int]] = field(default_factory=dict)
    _absent: dict[str, str] = field(default_factory=dict)
    _capped_ns: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Open the boards, and note for how long clocks had been held back before."""
        self._boards = open_boards(self.device)
        for name, count in self._held_back().items():
            self._capped_ns[name] = count

    def look(self) -> None:
        """Note the clocks as they are now, what may change soonest first; to be called right after a round."""
        for name, (calls, arguments, of_several) in _EACH_ROUND.items():
            if found := self._asked(name, calls, *arguments):
                self._seen.setdefault(name, []).append(of_several(found))

    def clocks(self) -> Clocks | str:
        """What was seen; a string says why nothing was."""
        if isinstance(self._boards, str):
            return self._boards
        if not self._seen:
            return f"NVML tells no clocks of this GPU: {next(iter(self._absent.values()), 'nobody looked')}"
        limit = self._asked("power_limit_w", ["nvmlDeviceGetEnforcedPowerLimit"])
        most = self._asked("max_sm_mhz", ["nvmlDeviceGetMaxClockInfo"], _SM)
        after = self._held_back()
        capped = {name: (after[name] - before) * _NANO for name, before in self._capped_ns.items() if name in after}
        throttling = self._seen.get("throttling")
        return Clocks(
            sm_mhz=tuple(self._seen.get("sm_mhz", ())),
            memory_mhz=tuple(self._seen.get("memory_mhz", ())),
            temperature_c=tuple(self._seen.get("temperature_c", ())),
            throttling=None if throttling is None else throttle_reasons(reduce(or_, throttling)),
            max_sm_mhz=min(most) if most else None,
            power_limit_w=min(limit) * _MILLI if limit else None,
            power_capped_s=capped.get("power_capped_s"),
            thermal_capped_s=capped.get("thermal_capped_s"),
            absent=self._absent,
        )

    def _held_back(self) -> dict[str, int]:
        """Nanoseconds for which clocks were held back since the driver was loaded; of several boards the most."""
        found = {}
        for name, policy in (("power_capped_s", _POWER), ("thermal_capped_s", _THERMAL)):
            if told := self._asked(name, ["nvmlDeviceGetViolationStatus"], policy):
                found[name] = max(int(each.violationTime) for each in told)
        return found

    def _asked(self, name: str, calls: Iterable[str], *arguments: int) -> list[Any]:
        """What is said of each board; nothing, and the reason kept, where NVML refuses it."""
        if isinstance(self._boards, str) or name in self._absent:
            return []
        try:
            return self._boards.ask(calls, *arguments)
        except OSError as error:
            self._absent[name] = f"NVML does not tell it of this GPU: {error}"
            return []


def throttle_reasons(bits: int) -> tuple[str, ...]:
    """The names of NVML's reasons for holding clocks back; idleness and clocks set on purpose are none."""
    left = bits & ~_NO_THROTTLING
    unknown = left & ~reduce(or_, _REASONS)
    return (*(name for bit, name in _REASONS.items() if left & bit), *([f"unknown_{unknown:#x}"] if unknown else []))
