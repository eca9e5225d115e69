"""How the threads of OpenMP wait for each other between the parts of a step: they spin for a short while, then they sleep.

libgomp spins some 300,000 times by default, which is 5 to 15 ms: beside one other busy process each of the dozens of barriers
of a decode step may take as long (bf16 of the canary fell from 200 tokens/s to 7). Without any spinning each barrier is a
round trip through the kernel, also on a quiet machine (gguf/q8_0 fell from 2,000 tokens/s to 150). In turn with the default
on two quiet cores, decode with 30,000 spins was 1.02 (nf4), 1.01 (bf16) and 0.98 (gguf/q8_0) times as fast, with 10,000 1.00,
0.95 and 1.03, with 3,000 0.92, 0.88 and 1.02. What is timed must not be slower where nothing else runs, so it is 30,000.

libgomp reads its environment once, when it is loaded, so this is a fact of a process and cannot be switched between passes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SPINS = 30_000
"""Some 0.3 to 1.5 milliseconds, depending on how long the CPU's pause instruction takes."""

POLICY, COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
_MAPS = Path("/proc/self/maps")


def bounded(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of a worker: a bounded spin, unless its user chose how threads wait."""
    return {} if POLICY in environment or COUNT in environment else {COUNT: str(SPINS)}


def described(environment: Mapping[str, str] = os.environ) -> str:
    """How threads wait in a process of that environment, for the column ``waiting``; what its user chose is marked so."""
    chosen = {name: environment[name] for name in (POLICY, COUNT) if name in environment}
    if chosen == {COUNT: str(SPINS)}:
        return f"spin {SPINS}"
    return f"{' '.join(f'{name}={value}' for name, value in chosen.items())} (user)" if chosen else "libgomp's default"


def waiting() -> str:
    """How threads wait in this process; empty where libgomp is not loaded, and something else decides."""
    loaded = _MAPS.read_text() if _MAPS.exists() else ""
    return described() if "libgomp" in loaded else ""
