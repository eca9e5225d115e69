"""Clocks of the GPU beside the timings: what was measured while they were held back says little of the variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from quantbench.core.record import Column, Missing, Value
from quantbench.core.trace import Clocks, Reference, Trace
from quantbench.metrics import metric

_NO_ROUNDS = "no rounds of answers were timed by a model in this process, and clocks are read after each"
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
        "gpu_sm_clock_max_mhz", "MHz", doc="the highest clock that the GPU is made for, not one that was seen",
        formula="as told after the last round", source="NVML nvmlDeviceGetMaxClockInfo",
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
        "gpu_power_limit_w", "W", doc="power that the GPU may take; of several GPUs the least",
        formula="as told after the last round", source="NVML nvmlDeviceGetEnforcedPowerLimit",
    ),
)  # fmt: skip


@metric(*_COLUMNS)
def clocks(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Clocks, temperature and power limit of the GPU beside the timed rounds, and why clocks were held back"""
    seen = trace.clocks
    if seen is None:
        none = Missing(trace.absent.get("clocks", _NO_ROUNDS))
        return {column.name: none for column in _COLUMNS}
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
