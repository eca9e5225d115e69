"""Energy per generated token: joules that the device used while answering, from a hardware counter.

On CUDA it is NVML's counter of the whole board, summed where a model is spread over several; on a CPU the RAPL counters of all
packages. Both count everything that runs there, and idle power is not subtracted. The answers for it are generated after the
latency pass, so that no counter is read while answers are timed, and for a limited share of the job's time; without a counter,
or where that is too short for it, the pass is skipped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from quantbench.core.boards import Boards, open_boards
from quantbench.core.record import Column, Missing, Value
from quantbench.core.signals import Watched
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric

_NONE = "energy is counted while answers are generated, and no model generated any in this process"


WINDOW_S = 5.0
"""NVML's counter moves every 20 to 100 ms, so a window of this length is accurate to 2 %."""

LEAST_S = 2.0
"""A shorter window would be less accurate than 5 %."""

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"package-\d+(-die-\d+)?")
_MICRO = 1e-6


class EnergyCounter(Protocol):
    """A counter of energy."""

    @property
    def source(self) -> str:
        """Where it is read."""

    def joules(self) -> float:
        """Joules since it was opened. Read it at least once per wrap-around of the hardware's counter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Joules that a device used while it generated ``tokens`` tokens; ``source`` names the counter."""

    joules: float
    tokens: int
    window_s: float
    source: str


@contextmanager
def watch_energy(during: Watched) -> Iterator[None]:
    """Read nothing while answers are timed; generate them again afterwards and count the energy of that."""
    yield
    if during.answers is not None:
        during.afterwards(lambda: during.tell(_measured(during)))
    elif during.no_answers:
        during.tell(during.no_answers)


def _measured(during: Watched) -> Mapping[str, object] | str:
    """Energy of answers to all prompts in turn, each as long as the context allows; a string says why there is none."""
    counter = find_counter(during.device)
    if isinstance(counter, str):
        return counter
    window_s = min(WINDOW_S, during.spare_s())
    if window_s < LEAST_S:
        return (
            f"energy may be counted for a limited share of a job's time, here {max(0.0, window_s):.1f} s, and its counter "
            f"needs {LEAST_S:g} s; time more prompts, or longer (--profile thorough)"
        )
    try:
        counted = count_energy(during, counter, window_s)
    except OSError as error:
        return f"the energy counter {counter.source} failed while answers were generated: {error}"
    if not counted.joules:
        return f"the energy counter {counter.source} did not move in {counted.window_s:.0f} s"
    return asdict(counted)


def count_energy(during: Watched, counter: EnergyCounter, window_s: float = WINDOW_S) -> Energy:
    """Answer for ``window_s`` seconds; the last answer is broken off when the time is up."""
    assert during.answers is not None
    tokens = 0
    elapsed_s = joules = 0.0
    during.synchronize()
    before = counter.joules()
    started = time.perf_counter()
    for answer in during.answers():
        for step in answer:
            tokens += step
            if time.perf_counter() - started >= window_s:
                break
        during.synchronize()
        joules = counter.joules() - before
        elapsed_s = time.perf_counter() - started
        if elapsed_s >= window_s:
            break
    return Energy(joules=joules, tokens=tokens, window_s=elapsed_s, source=counter.source)


def find_counter(device: str, powercap: Path = POWERCAP) -> EnergyCounter | str:
    """The counter for the device, or for several joined by ``+``; a string says why there is none."""
    return open_nvml_counter(device) if device.startswith("cuda") else open_rapl(powercap)


@dataclass(slots=True)
class Rapl:
    """The energy counters of all CPU packages, in microjoules; each wraps around to zero at the end of its range."""

    domains: Sequence[Path]
    source: str = "RAPL, CPU packages"
    _last: dict[Path, int] = field(default_factory=dict)
    _total_uj: int = 0

    def joules(self) -> float:
        """See EnergyCounter."""
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
        return f"the kernel offers no RAPL energy counter for a CPU package here (none under {powercap})"
    rapl = Rapl(packages)
    try:
        rapl.joules()
    except PermissionError:
        return (
            f"RAPL's counter {packages[0] / 'energy_uj'} is not readable by this user; make it readable, or run as root"
        )
    except (OSError, ValueError) as error:
        return f"RAPL's counter {packages[0] / 'energy_uj'} cannot be read: {error}"
    return rapl


@dataclass(frozen=True, slots=True)
class Nvml:
    """The energy counters of GPU boards, which start when the driver is loaded."""

    boards: Boards

    @property
    def source(self) -> str:
        """See EnergyCounter."""
        count = len(self.boards.handles)
        return "NVML, GPU board" if count == 1 else f"NVML, {count} GPU boards"

    def joules(self) -> float:
        """See EnergyCounter. OSError when NVML refuses."""
        return self.boards.joules()


def open_nvml_counter(device: str) -> Nvml | str:
    """The counters of the boards of ``device``, read once to see that they work."""
    boards = open_boards(device)
    if isinstance(boards, str):
        return boards
    try:
        boards.joules()
    except OSError as error:
        return f"NVML gives no energy counter for this GPU: {error}"
    return Nvml(boards)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@metric(
    Column(
        "energy_per_token_j",
        "J/token",
        "lower",
        title="Energy, J/token", shown="report", place=40,
        doc="energy per generated token, prompt passes included; neither idle power nor other work there is subtracted",
        formula="joules of the window / tokens generated in it",
        source="NVML total energy counter of the GPU boards in use, or RAPL energy_uj of all CPU packages",
    ),
    Column(
        "energy_window_s",
        "s",
        doc="how long energy was counted: 5 s, or a quarter of the job's time, at least 2 s as counters move every 1 to 100 ms",
        formula="end - start of the energy pass, which comes after the latency pass",
        source="quantbench, DESIGN section 6",
    ),
    Column(
        "energy_source",
        "",
        kind="string",
        doc="the counter, and what it counts",
        formula="NVML where the device is CUDA, else RAPL",
        source="quantbench, DESIGN section 6",
    ),
    signal=watch_energy,
)
def energy(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Joules per generated token"""
    told = trace.signals.get("energy", trace.absent.get("energy", _NONE))
    if isinstance(told, str):
        return dict.fromkeys(("energy_per_token_j", "energy_window_s", "energy_source"), Missing(told))
    seen = Energy(**told)
    return {
        "energy_per_token_j": seen.joules / seen.tokens,
        "energy_window_s": seen.window_s,
        "energy_source": seen.source,
    }
