"""A stand-in for NVML, so that what is made of its answers can be checked where there is no GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

GIB = 2**30


class FakeError(Exception):
    """Stands for pynvml's."""


class FakeNotFoundError(FakeError):
    """What NVML raises where nobody used a board."""

    value = 6


@dataclass(kw_only=True)
class Board:
    """What one board says; a figure that is a callable is called for each answer. ``processes`` are (pid, bytes)."""

    name: str = "NVIDIA H100 80GB HBM3"
    total: int = 80 * GIB
    used: int | Callable[[], int] = 0
    processes: list[tuple[int, int | None]] = field(default_factory=list)
    millijoules: int | Callable[[], int] = 0
    sm_mhz: int | Callable[[], int] = 1980
    memory_mhz: int | Callable[[], int] = 2619
    most_sm_mhz: int = 1980
    temperature_c: int | Callable[[], int] = 40
    reasons: int | Callable[[], int] = 0
    capped_ns: dict[int, int] = field(default_factory=dict)
    limit_mw: int = 700_000
    used_by: dict[int, int] = field(default_factory=dict)
    """How busy each process keeps it, in percent."""
    looks: int = 0
    """How often somebody asked what it had given away."""


def _now(figure: int | Callable[[], int]) -> int:
    return figure() if callable(figure) else figure


class FakeNvml:
    """Stands for pynvml: its functions take a board's UUID for the handle. What is in ``refuses`` is not supported."""

    NVMLError = FakeError

    def __init__(self, boards: dict[str, Board]) -> None:
        self.boards = boards
        self.refuses: dict[str, str] = {}
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A function of NVML, if there is one of that name here."""
        answer = getattr(type(self), f"_{name.removeprefix('nvmlDevice').removeprefix('nvml')}", None)
        if answer is None:
            raise AttributeError(f"Function Not Found: {name}")

        def call(*arguments: Any) -> Any:
            self.asked.append(name)
            if name in self.refuses:
                raise FakeError(self.refuses[name])
            return answer(self, *arguments)

        return call

    def _Init(self) -> None:  # noqa: N802 - NVML's names, also below
        pass

    def _SystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.95.05"

    def _GetCount(self) -> int:  # noqa: N802
        return len(self.boards)

    def _GetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return list(self.boards)[index]

    def _GetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in self.boards:
            raise FakeError("Not Found")
        return uuid

    def _GetUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def _GetName(self, uuid: str) -> str:  # noqa: N802
        return self.boards[uuid].name

    def _GetMemoryInfo(self, uuid: str) -> SimpleNamespace:  # noqa: N802
        self.boards[uuid].looks += 1
        return SimpleNamespace(total=self.boards[uuid].total, used=_now(self.boards[uuid].used))

    def _GetComputeRunningProcesses(self, uuid: str) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=count) for pid, count in self.boards[uuid].processes]

    def _GetProcessUtilization(self, uuid: str, since_us: int) -> list[SimpleNamespace]:  # noqa: N802
        busy = self.boards[uuid].used_by.items()
        if not busy:
            raise FakeNotFoundError
        return [SimpleNamespace(pid=pid, smUtil=percent, timeStamp=since_us + 1) for pid, percent in busy]

    def _GetTotalEnergyConsumption(self, uuid: str) -> int:  # noqa: N802
        return _now(self.boards[uuid].millijoules)

    def _GetClockInfo(self, uuid: str, clock: int) -> int:  # noqa: N802
        return _now({1: self.boards[uuid].sm_mhz, 2: self.boards[uuid].memory_mhz}[clock])

    def _GetMaxClockInfo(self, uuid: str, clock: int) -> int:  # noqa: N802
        return {1: self.boards[uuid].most_sm_mhz}[clock]

    def _GetTemperatureV(self, uuid: str, sensor: int) -> int:  # noqa: N802
        return _now({0: self.boards[uuid].temperature_c}[sensor])

    def _GetTemperature(self, uuid: str, sensor: int) -> int:  # noqa: N802
        return self._GetTemperatureV(uuid, sensor)

    def _GetCurrentClocksEventReasons(self, uuid: str) -> int:  # noqa: N802
        return _now(self.boards[uuid].reasons)

    def _GetCurrentClocksThrottleReasons(self, uuid: str) -> int:  # noqa: N802
        return self._GetCurrentClocksEventReasons(uuid)

    def _GetViolationStatus(self, uuid: str, policy: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(violationTime=self.boards[uuid].capped_ns.get(policy, 0))

    def _GetEnforcedPowerLimit(self, uuid: str) -> int:  # noqa: N802
        return self.boards[uuid].limit_mw


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """Two boards that only NVML tells of, without ``nvidia-smi``."""
    fake = FakeNvml({"GPU-aaaa-1": Board(), "GPU-bbbb-2": Board()})
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]  # whatever an import finds there it takes
    monkeypatch.setattr("quantbench.core.gpus.shutil.which", lambda _: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake
