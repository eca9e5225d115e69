"""The energy pass: joules that the device took while it answered, from a counter that the hardware keeps.

On CUDA it is NVML's counter of the whole board, the sum where a model is spread over several; on a CPU the RAPL counters of all
packages. Both count everything that runs there; what the device takes when idle is not subtracted. The pass comes after the
latency pass, so that nothing reads counters while answers are timed, and where there is no counter it takes no time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Protocol

from quantbench.core.trace import Energy
from quantbench.measuring.passes.gpu import Boards, open_boards
from quantbench.measuring.passes.latency import Contender, answer_tokens

WINDOW_S = 5.0
"""NVML's counter moves every 20 to 100 ms, so a window of this length is right within 2 %."""

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"package-\d+(-die-\d+)?")
_MICRO = 1e-6


class EnergyCounter(Protocol):
    """A counter of energy."""

    @property
    def source(self) -> str:
        """Where it is read."""

    def joules(self) -> float:
        """Joules since it was opened; to be read at least once while the hardware's counter goes around once."""


def measure_energy(contender: Contender, context: int, device: str) -> Energy | str:
    """Energy of answers to all prompts in turn, as long as the context allows; a string says why there is none."""
    counter = find_counter(device)
    if isinstance(counter, str):
        return counter
    try:
        counted = count_energy(contender, context, counter)
    except OSError as error:
        return f"the energy counter {counter.source} failed while answers were generated: {error}"
    return counted if counted.joules else f"the energy counter {counter.source} did not move in {counted.window_s:.0f} s"


def count_energy(contender: Contender, context: int, counter: EnergyCounter) -> Energy:
    """Answer for at least WINDOW_S seconds; the last answer is left off where it stands."""
    model, batch = contender.model, contender.batch
    tokens = 0
    elapsed_s = joules = 0.0
    model.synchronize()
    before = counter.joules()
    started = time.perf_counter()
    for prompt in cycle(contender.prompts):
        for _ in answer_tokens(model, prompt, context - len(prompt), batch):
            tokens += batch
            if time.perf_counter() - started >= WINDOW_S:
                break
        model.synchronize()
        joules = counter.joules() - before
        elapsed_s = time.perf_counter() - started
        if elapsed_s >= WINDOW_S:
            break
    return Energy(joules=joules, tokens=tokens, window_s=elapsed_s, source=counter.source)


def find_counter(device: str, powercap: Path = POWERCAP) -> EnergyCounter | str:
    """The counter for the device, or for places joined by ``+``; or in a sentence why there is none."""
    return open_nvml_counter(device) if device.startswith("cuda") else open_rapl(powercap)


@dataclass(slots=True)
class Rapl:
    """The energy counters of all CPU packages, in microjoules, each of which starts again at zero after its range."""

    domains: Sequence[Path]
    source: str = "RAPL, CPU packages"
    _last: dict[Path, int] = field(default_factory=dict)
    _total_uj: int = 0

    def joules(self) -> float:
        """See Counter."""
        for domain in self.domains:
            now = int((domain / "energy_uj").read_text())
            moved = now - self._last.get(domain, now)
            self._total_uj += moved if moved >= 0 else moved + int((domain / "max_energy_range_uj").read_text())
            self._last[domain] = now
        return self._total_uj * _MICRO


def open_rapl(powercap: Path = POWERCAP) -> Rapl | str:
    """The counters of the CPU's packages under ``powercap``; parts of a package and the whole platform are left out."""
    names = {path.parent: _read(path) for path in sorted(powercap.glob("intel-rapl:*/name"))}
    packages = [domain for domain, name in names.items() if _PACKAGE.fullmatch(name)]
    if not packages:
        return f"the kernel offers no RAPL energy counter of a CPU package here (no such domain under {powercap})"
    rapl = Rapl(packages)
    try:
        rapl.joules()
    except PermissionError:
        return (
            f"RAPL's counter {packages[0] / 'energy_uj'} is not readable as this user; give it read permission, or run as root"
        )
    except (OSError, ValueError) as error:
        return f"RAPL's counter {packages[0] / 'energy_uj'} cannot be read: {error}"
    return rapl


@dataclass(frozen=True, slots=True)
class Nvml:
    """The energy counters of GPU boards, which count since the driver was loaded."""

    boards: Boards

    @property
    def source(self) -> str:
        """See Counter."""
        count = len(self.boards.handles)
        return "NVML, GPU board" if count == 1 else f"NVML, {count} GPU boards"

    def joules(self) -> float:
        """See Counter. OSError when NVML refuses."""
        return self.boards.joules()


def open_nvml_counter(device: str) -> Nvml | str:
    """The counters of the boards of ``device``, tried once."""
    boards = open_boards(device)
    if isinstance(boards, str):
        return boards
    try:
        boards.joules()
    except OSError as error:
        return f"NVML gives no energy counter of this GPU: {error}"
    return Nvml(boards)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
