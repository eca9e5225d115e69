"""How the threads of OpenMP wait for each other between the parts of a step: they spin for a short while, then they sleep.

libgomp spins some 300,000 times by default, which is 5 to 15 ms: beside one other busy process each of the dozens of barriers
of a decode step may take as long (bf16 of the canary fell from 200 tokens/s to 7). Without any spinning each barrier is a
round trip through the kernel, also on a quiet machine (gguf/q8_0 fell from 2,000 tokens/s to 150). In turn with the default
on two quiet cores, decode with 30,000 spins was 1.02 (nf4), 1.01 (bf16) and 0.98 (gguf/q8_0) times as fast, with 10,000 1.00,
0.95 and 1.03, with 3,000 0.92, 0.88 and 1.02. What is timed must not be slower where nothing else runs, so it is 30,000.

libgomp reads its environment once, when it is loaded. But where it manages more threads than there are CPUs it spins 100 times
only (GOMP_SPINCOUNT in its manual), whatever else was asked for; so threads that do nothing switch spinning off and on again.
Beside one busy process on two cores that took decode from 9 to 184 tokens/s (bf16), 5 to 42 (nf4) and 20 to 532 (gguf/q8_0).
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
"""Some 0.3 to 1.5 milliseconds, depending on how long the CPU's pause instruction takes."""

BESIDE_SPINS = 100
"""What libgomp does where it manages more threads than there are CPUs."""

POLICY, COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
_MAPS = Path("/proc/self/maps")
_LIBGOMP = re.compile(r"/\S*libgomp\S*\.so\S*")


def bounded(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of a worker: a bounded spin, unless its user chose how threads wait."""
    return {} if POLICY in environment or COUNT in environment else {COUNT: str(SPINS)}


def described(environment: Mapping[str, str] = os.environ) -> str:
    """How threads wait in a process of that environment, for the column ``waiting``; what its user chose is marked so."""
    chosen = {name: environment[name] for name in (POLICY, COUNT) if name in environment}
    if chosen == {COUNT: str(SPINS)}:
        return f"spin {SPINS}"
    return f"{' '.join(f'{name}={value}' for name, value in chosen.items())} (user)" if chosen else "libgomp's default"


def waiting(*, rested: bool = False) -> str:
    """How threads wait in this process; empty where libgomp is not loaded, and something else decides.

    ``rested`` says that they slept beside other work in what was timed (see ``Rest``).
    """
    loaded = _MAPS.read_text() if _MAPS.exists() else ""
    if "libgomp" not in loaded:
        return ""
    return f"{described()}, {BESIDE_SPINS} beside other work" if rested else described()


class Rest:
    """Whether the threads of this process sleep almost at once where they wait, until it is closed; a user's choice stands.

    For as long as they do, each libgomp that is loaded has a second team, which does nothing, of so many threads that it
    counts more than there are CPUs. Nothing happens where libgomp is not loaded.
    """

    def __init__(self, threads: int) -> None:
        """``threads`` is how many the first team has. They spin as before until ``begin``."""
        self._team = max(2, available_cpus() - threads + 2)
        self._ours = not any(name in os.environ and os.environ[name] != str(SPINS) for name in (COUNT, POLICY))
        self._resting: dict[str, tuple[Thread, Event]] = {}

    def __enter__(self) -> Self:
        """Nothing is begun yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Spin as before."""
        self.end()

    @property
    def resting(self) -> bool:
        """Whether any libgomp of this process spins less than it was told."""
        return bool(self._resting)

    def begin(self) -> None:
        """Let threads sleep, those of libraries too that were loaded since this was last called."""
        loaded = _MAPS.read_text() if self._ours and _MAPS.exists() else ""
        for path in sorted(set(_LIBGOMP.findall(loaded)) - self._resting.keys()):
            started, ended = Event(), Event()
            thread = Thread(target=_hold, args=(path, self._team, started, ended), daemon=True)
            thread.start()
            started.wait()
            self._resting[path] = thread, ended

    def end(self) -> None:
        """Let threads spin again; the other team is gone within a moment, and no longer counted."""
        for thread, ended in self._resting.values():
            ended.set()
            thread.join()
        self._resting.clear()


def _hold(path: str, team: int, started: Event, ended: Event) -> None:
    """Have a team of so many threads until ``ended``: libgomp keeps it as long as the thread lives that asked for it."""
    with contextlib.suppress(OSError, AttributeError):  # a build without it goes on spinning
        nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)  # any function that minds neither argument nor result
        ctypes.CDLL(path).GOMP_parallel(nothing, None, team, 0)
    started.set()
    ended.wait()
