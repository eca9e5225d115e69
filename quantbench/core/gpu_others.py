"""How busy other processes keep the GPU while a run is timed, as NVML samples it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from quantbench.core.boards import Boards, open_boards

_NOTHING = (0, 6)
"""NVML's codes for success and "not found": no process used the board in the last sample period."""
_PERCENT = 0.01


@dataclass(slots=True)
class OthersOnGpu:
    """Looks after each round; one NVML sample covers its last period, between 1/6 s and 1 s."""

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
