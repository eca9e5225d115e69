"""How the threads of OpenMP wait for each other between the parts of a step: they spin for a short while, then they sleep.

libgomp spins about 300,000 times by default, which takes 5 to 15 ms: next to one other busy process, each of the dozens of
barriers of a decode step may take that long (bf16 of the canary fell from 200 tokens/s to 7). Without any spinning each barrier
is a round trip through the kernel, even on a quiet machine (gguf/q8_0 fell from 2,000 tokens/s to 150). Alternating with the
default on two quiet cores, decode with 30,000 spins was 1.02 (nf4), 1.01 (bf16) and 0.98 (gguf/q8_0) times as fast, with 10,000
1.00, 0.95 and 1.03, with 3,000 0.92, 0.88 and 1.02. Timings on a quiet machine must not become slower, so it is 30,000.

libgomp reads its environment once, when it is loaded. But if it manages more threads than there are CPUs, it spins only 100
times (GOMP_SPINCOUNT in its manual) whatever the environment says; so idle extra threads can switch spinning off and on again.
Next to one busy process on two cores, decode rose from 9 to 184 tokens/s (bf16), 5 to 42 (nf4) and 20 to 532 (gguf/q8_0).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self

from quantbench.core.machine import available_cpus

SPINS = 30_000
"""About 0.3 to 1.5 ms, depending on how long the CPU's pause instruction takes."""

BESIDE_SPINS = 100
"""What libgomp does if it manages more threads than there are CPUs."""

POLICY, COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
_MAPS = Path("/proc/self/maps")
_LIBGOMP = re.compile(r"/\S*libgomp\S*\.so\S*")


def bounded(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to a worker's environment: a bounded spin, unless the user has set how threads wait."""
    return {} if POLICY in environment or COUNT in environment else {COUNT: str(SPINS)}


def described(environment: Mapping[str, str] = os.environ) -> str:
    """How threads wait in a process with that environment, for the column ``waiting``; the user's own settings are marked."""
    chosen = {name: environment[name] for name in (POLICY, COUNT) if name in environment}
    if chosen == {COUNT: str(SPINS)}:
        return f"spin {SPINS}"
    return f"{' '.join(f'{name}={value}' for name, value in chosen.items())} (user)" if chosen else "libgomp's default"


def waiting(*, rested: bool = False) -> str:
    """How threads wait in this process; empty if libgomp is not loaded, and something else decides.

    ``rested`` says that they slept during timing because of other work (see ``Rest``).
    """
    loaded = _MAPS.read_text() if _MAPS.exists() else ""
    if "libgomp" not in loaded:
        return ""
    return f"{described()}, {BESIDE_SPINS} beside other work" if rested else described()


class Rest:
    """Lets this process's waiting threads go to sleep almost at once, until it is closed; the user's own settings win.

    Meanwhile each loaded libgomp has a second, idle team, large enough that libgomp manages more threads than there are CPUs.
    Without libgomp nothing happens.
    """

    def __init__(self, threads: int) -> None:
        """``threads`` is the size of the first team. Its threads spin as before until ``begin``."""
        self._team = max(2, available_cpus() - threads + 2)
        self._ours = not any(name in os.environ and os.environ[name] != str(SPINS) for name in (COUNT, POLICY))
        self._resting: dict[str, tuple[Thread, Event]] = {}

    def __enter__(self) -> Self:
        """Threads still spin as before."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Spin as before."""
        self.end()

    @property
    def resting(self) -> bool:
        """Whether any libgomp of this process spins less than its settings say."""
        return bool(self._resting)

    def begin(self) -> None:
        """Let threads sleep, including those of libraries loaded since the last call."""
        loaded = _MAPS.read_text() if self._ours and _MAPS.exists() else ""
        for path in sorted(set(_LIBGOMP.findall(loaded)) - self._resting.keys()):
            started, ended = Event(), Event()
            thread = Thread(target=_hold, args=(path, self._team, started, ended), daemon=True)
            thread.start()
            started.wait()
            self._resting[path] = thread, ended

    def end(self) -> None:
        """Let threads spin again, once the idle team has ended."""
        for thread, ended in self._resting.values():
            ended.set()
            thread.join()
        self._resting.clear()


def _hold(path: str, team: int, started: Event, ended: Event) -> None:
    """Keep an idle team of ``team`` threads until ``ended``: libgomp keeps it as long as the thread that started it lives."""
    with contextlib.suppress(OSError, AttributeError):  # a libgomp without this symbol keeps spinning
        nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)  # any harmless function that ignores its argument
        ctypes.CDLL(path).GOMP_parallel(nothing, None, team, 0)
    started.set()
    ended.wait()
