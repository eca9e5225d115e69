"""GPU clocks during the timed rounds: a timing taken while they were throttled says little about the variant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import or_
from statistics import median
from typing import Any

from quantbench.core.boards import Boards, open_boards
from quantbench.core.record import Column, Missing, Value
from quantbench.core.signals import Watched
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric

_MILLI = 1e-3
_NANO = 1e-9

_SM, _MEMORY = 1, 2
"""NVML's numbers for the clocks."""

_POWER, _THERMAL = 0, 1
"""NVML's numbers for the policies that throttle clocks."""

_CORE = 0
"""NVML's number for the sensor on the chip."""

_REASONS = {
    0x4: "sw_power_cap", 0x8: "hw_slowdown", 0x10: "sync_boost", 0x20: "sw_thermal", 0x40: "hw_thermal", 0x80: "hw_power_brake",
    0x200: "board_limit", 0x400: "reliability",
}  # fmt: skip
_NO_THROTTLING = 0x1 | 0x2 | 0x100
"""Idle, and clocks that were set on purpose."""

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
"""By figure: the calls that give it (older drivers have only the second), their arguments, which of several boards counts."""

_NO_ROUNDS = "clocks are read after each timed round, and no model was timed in this process"
_CLOCK = "NVML nvmlDeviceGetClockInfo"
_VIOLATION = "NVML nvmlDeviceGetViolationStatus"
_COLUMNS = (
    Column(
        "gpu_sm_clock_mhz", "MHz", doc="clock of the GPU's processors right after the rounds; of several GPUs the slowest",
        formula="median over the rounds", source=_CLOCK,
    ),
    Column(
        "gpu_sm_clock_min_mhz", "MHz", doc="the lowest of these", formula="minimum over the rounds", source=_CLOCK,
    ),
    Column(
        "gpu_sm_clock_max_mhz", "MHz", doc="the highest clock that the GPU is rated for, not one that was observed",
        formula="as NVML gives it after the last round", source="NVML nvmlDeviceGetMaxClockInfo",
    ),
    Column(
        "gpu_memory_clock_mhz", "MHz", doc="clock of the GPU's memory right after the rounds",
        formula="median over the rounds", source=_CLOCK,
    ),
    Column(
        "gpu_temperature_c", "degrees C", doc="temperature of the chip; of several GPUs the hottest",
        formula="maximum over the rounds", source="NVML nvmlDeviceGetTemperatureV",
    ),
    Column(
        "gpu_throttle_reasons", "", kind="string",
        doc="why clocks were held back right after a round, joined by commas; empty where they were not",
        formula="union over the rounds, without idleness and clocks that were set on purpose",
        source="NVML nvmlDeviceGetCurrentClocksEventReasons",
    ),
    Column(
        "gpu_power_capped_s", "s", "lower", doc="how long clocks were held back for power, from before the first round on",
        formula="violation time of the power policy after the last round - before the first", source=_VIOLATION,
    ),
    Column(
        "gpu_thermal_capped_s", "s", "lower", doc="how long clocks were held back for heat, from before the first round on",
        formula="violation time of the thermal policy after the last round - before the first", source=_VIOLATION,
    ),
    Column(
        "gpu_power_limit_w", "W", doc="power that the GPU may draw; the lowest of several GPUs",
        formula="as NVML gives it after the last round", source="NVML nvmlDeviceGetEnforcedPowerLimit",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Readings of the GPU boards in use, one per timed round; of several boards, the worst reading.

    ``throttling`` names why clocks were throttled; ``power_capped_s`` and ``thermal_capped_s`` are for how long, by power or
    heat, from before the first round until after the last. ``absent`` says why one of these is empty or None.
    """

    sm_mhz: tuple[int, ...] = ()
    memory_mhz: tuple[int, ...] = ()
    temperature_c: tuple[int, ...] = ()
    throttling: tuple[str, ...] | None = None
    max_sm_mhz: int | None = None
    power_limit_w: float | None = None
    power_capped_s: float | None = None
    thermal_capped_s: float | None = None
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class ClockWatch:
    """Reads the boards' clocks between rounds, never during a timed one.

    A reading that a board does not offer costs only that figure.
    """

    device: str
    _boards: Boards | str = field(init=False)
    _seen: dict[str, list[int]] = field(default_factory=dict)
    _absent: dict[str, str] = field(default_factory=dict)
    _capped_ns: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Open the boards, and note how long clocks had been throttled before."""
        self._boards = open_boards(self.device)
        for name, count in self._held_back().items():
            self._capped_ns[name] = count

    def look(self) -> None:
        """Record the clocks as they are now, the fastest to change first; call it right after a round."""
        for name, (calls, arguments, of_several) in _EACH_ROUND.items():
            if found := self._asked(name, calls, *arguments):
                self._seen.setdefault(name, []).append(of_several(found))

    def clocks(self) -> Clocks | str:
        """The readings; a string says why there are none."""
        if isinstance(self._boards, str):
            return self._boards
        if not self._seen:
            return f"NVML gives no clocks for this GPU: {next(iter(self._absent.values()), 'no round was timed')}"
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
        """Nanoseconds of throttling since the driver was loaded; the most of several boards."""
        found = {}
        for name, policy in (("power_capped_s", _POWER), ("thermal_capped_s", _THERMAL)):
            if told := self._asked(name, ["nvmlDeviceGetViolationStatus"], policy):
                found[name] = max(int(each.violationTime) for each in told)
        return found

    def _asked(self, name: str, calls: Iterable[str], *arguments: int) -> list[Any]:
        """One reading per board; none, with the reason kept, where NVML refuses."""
        if isinstance(self._boards, str) or name in self._absent:
            return []
        try:
            return self._boards.ask(calls, *arguments)
        except OSError as error:
            self._absent[name] = f"NVML does not give it for this GPU: {error}"
            return []


def throttle_reasons(bits: int) -> tuple[str, ...]:
    """The names of NVML's throttle reasons; idle clocks and clocks set on purpose do not count."""
    left = bits & ~_NO_THROTTLING
    unknown = left & ~reduce(or_, _REASONS)
    return (*(name for bit, name in _REASONS.items() if left & bit), *([f"unknown_{unknown:#x}"] if unknown else []))


@contextmanager
def watch_clocks(during: Watched) -> Iterator[None]:
    """Read clocks right after each round of answers, never during a timed one."""
    if during.name != "latency":
        yield
        return
    watch = ClockWatch(during.device)
    during.after_round(watch.look)
    yield
    found = watch.clocks()
    during.tell(found if isinstance(found, str) else asdict(found))


@metric(*_COLUMNS, signal=watch_clocks)
def clocks(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Clocks, temperature and power limit of the GPU during the timed rounds, and why clocks were throttled"""
    told = trace.signals.get("clocks", _NO_ROUNDS)
    if isinstance(told, str):
        return {column.name: Missing(told) for column in _COLUMNS}
    seen = Clocks(**told)
    throttling = None if seen.throttling is None else ",".join(seen.throttling)
    return {
        "gpu_sm_clock_mhz": _or(_middle(seen.sm_mhz), seen, "sm_mhz"),
        "gpu_sm_clock_min_mhz": _or(min(seen.sm_mhz, default=None), seen, "sm_mhz"),
        "gpu_sm_clock_max_mhz": _or(seen.max_sm_mhz, seen, "max_sm_mhz"),
        "gpu_memory_clock_mhz": _or(_middle(seen.memory_mhz), seen, "memory_mhz"),
        "gpu_temperature_c": _or(max(seen.temperature_c, default=None), seen, "temperature_c"),
        "gpu_throttle_reasons": _or(throttling, seen, "throttling"),
        "gpu_power_capped_s": _or(seen.power_capped_s, seen, "power_capped_s"),
        "gpu_thermal_capped_s": _or(seen.thermal_capped_s, seen, "thermal_capped_s"),
        "gpu_power_limit_w": _or(seen.power_limit_w, seen, "power_limit_w"),
    }


def _middle(figures: Sequence[int]) -> float | None:
    return median(figures) if figures else None


def _or(value: float | str | None, seen: Clocks, name: str) -> Value:
    return Missing(seen.absent.get(name, _NO_ROUNDS)) if value is None else value
