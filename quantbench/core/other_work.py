"""What else the machine does while a run is timed: CPU time of other processes and steal time, as the kernel counts them.

Linux counts in ``/proc/stat`` how long each CPU worked, and in ``/proc/PID/stat`` how long each process did. The work of this
process's CPUs minus that of the run's own processes is the work of others. Both are read before the first round and after the
last, never while a round is timed. They are counted in ticks of 10 ms, so one window over all rounds is accurate where a window
per round would not be.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantbench.core.boards import OthersOnGpu

PROC = Path("/proc")

_LOOK_S = 0.1
"""A look takes at least this long; longer on few CPUs, until enough ticks have passed."""

_CROWDED_CPUS = 0.5
"""A busy process in another session gets this share of a CPU; less than this already slows a row."""

LEAST_TICKS = 20
"""With fewer ticks on all CPUs together, a share of them means nothing."""

_WORK = (0, 1, 2, 5, 6)
"""Indices of user, nice, system, irq and softirq in a CPU's line of /proc/stat; guest time is already part of user."""
_STEAL = 7
_PARENT, _TIMES, _START = 1, slice(11, 15), 19
"""Indices in /proc/PID/stat after the command: parent, utime to cstime (of ended children), start time."""


# On two cores a quiet machine showed 0 to 0.033 (one or two ticks of 10 ms in 0.3 s), one other busy process 0.40 to 0.55, and
# a torch matrix product was then 2 to 60 times slower. So any bound between these works. One process that competes with as
# many threads as there are CPUs slows all of them, however many there are: the bound is therefore a part of one CPU, but no
# lower than what the daemons of a large machine take.
_MOST_OTHERS_CPUS = 0.15
_LEAST_OTHERS = 0.02
_MOST_STEAL = 0.05
_MOST_GPU = 0.05
RESTED = "threads did not spin where they waited, so as to give way"
_NOISE_TICKS = 3
"""This many ticks are noise: work of CPUs and of processes is not rounded to ticks at the same moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherWork:
    """What else the machine did during ``window_s`` seconds of timed rounds, as shares (0 to 1) of the time of all its CPUs.

    ``others_cpu`` went to processes outside the run, ``steal`` to other guests of the same host; ``others_gpu`` is how busy
    others kept the GPU. ``tick_share`` is the share of a single tick, the unit in which CPU time is counted. ``rested`` says
    that threads gave way to others instead of spinning. ``absent`` says why one of these is None.
    """

    window_s: float
    cpus: int = 1
    tick_share: float = 0.0
    others_cpu: float | None = None
    steal: float | None = None
    others_gpu: float | None = None
    rested: bool = False
    absent: Mapping[str, str] = field(default_factory=dict)


def disturbance(seen: OtherWork) -> str:
    """The other work that was enough to slow what is timed, in words; empty if there was none."""
    ticks = _NOISE_TICKS * seen.tick_share
    most = max(_LEAST_OTHERS, _MOST_OTHERS_CPUS / max(seen.cpus, 1), ticks)
    found = (
        (seen.others_cpu, most, "other processes took {:.0%} of the CPU time"),
        (seen.steal, max(_MOST_STEAL, ticks), "other guests of the host took {:.0%} of the CPU time"),
        (seen.others_gpu, _MOST_GPU, "other processes kept the GPU busy {:.0%} of the time"),
    )
    said = [words.format(share) for share, bound, words in found if share is not None and share > bound]
    return " and ".join([*said, *([RESTED] if seen.rested else [])])


@dataclass(frozen=True, slots=True)
class Process:
    """One process at one moment: its parent, CPU time in ticks including ended children, start time after boot."""

    parent: int
    ticks: int
    start: int


@dataclass(frozen=True, slots=True)
class _Moment:
    """Counters at one moment: the clock in seconds, and ticks of the CPUs' work, of steal time, and of the run's processes."""

    clock_s: float
    work: int
    steal: int
    own: int


def this_process(proc: Path = PROC) -> tuple[int, int] | None:
    """Id and start time of this process, as a job identifies the run's first one; None if the kernel does not tell."""
    pid = os.getpid()
    found = _process(proc, pid)
    return (pid, found.start) if found else None


class OtherWorkWatch:
    """Watches from its creation until ``ended``.

    Own work is that of ``root`` and its descendants, which include a fork server, workers and local servers in their own
    sessions. Without a living ``root`` above this process, own work is that of this process and its descendants.
    """

    def __init__(
        self, root: tuple[int, int] | None = None, device: str = "cpu", *, own_server: bool = True, proc: Path = PROC
    ) -> None:
        """``device`` is where a model runs; ``own_server`` is False if the run uses a server that it did not start."""
        self._proc = proc
        self._own_server = own_server
        self._ticks_s = os.sysconf("SC_CLK_TCK")
        processes = _processes(proc)
        self._root = _root(root, processes)
        self._cpus = _cpus_of(self._root)
        self._gpu = OthersOnGpu(device)
        self._before = self._last = self._moment(processes)
        self._crowded = False

    @property
    def look_s(self) -> float:
        """Seconds after which a share of the ticks is meaningful."""
        return max(_LOOK_S, 1.25 * LEAST_TICKS / self._ticks_s / max(len(self._cpus), 1))

    def look(self) -> None:
        """Note how busy others keep the GPU; call it after each round."""
        self._gpu.look(lambda: set(descendants(_processes(self._proc), self._root)))

    def crowded(self) -> bool:
        """Whether others took more than half a CPU since the last call; the last answer again if too few ticks have passed."""
        if isinstance(self._last, str) or not self._own_server or time.perf_counter() - self._last.clock_s < 2 * self.look_s:
            return self._crowded
        now = self._moment(_processes(self._proc))
        others = self._between(self._last, now).others_cpu
        self._crowded = others is not None and others * len(self._cpus) > _CROWDED_CPUS
        self._last = now
        return self._crowded

    def ended(self) -> OtherWork:
        """What others did since this watch was created."""
        return self._between(self._before, self._moment(_processes(self._proc)))

    def _between(self, before: _Moment | str, after: _Moment | str) -> OtherWork:
        others_gpu = self._gpu.share()
        absent = {"others_gpu": others_gpu} if isinstance(others_gpu, str) else {}
        gpu = None if isinstance(others_gpu, str) else others_gpu
        if isinstance(before, str) or isinstance(after, str):
            why = before if isinstance(before, str) else str(after)
            absent |= {"others_cpu": why, "steal": why}
            return OtherWork(window_s=0.0, others_gpu=gpu, absent=absent)
        window_s = after.clock_s - before.clock_s
        ticks = window_s * self._ticks_s * len(self._cpus)
        if ticks < LEAST_TICKS:
            why = f"{window_s:.2f} s were timed, too short for CPU time counted in ticks of {1 / self._ticks_s:g} s"
            return OtherWork(window_s=window_s, others_gpu=gpu, absent={**absent, "others_cpu": why, "steal": why})
        work = (after.work - before.work) - (after.own - before.own)
        if not self._own_server:
            absent["others_cpu"] = "the run did not start the server, so the server's work cannot be told from that of others"
        return OtherWork(
            window_s=window_s,
            cpus=len(self._cpus),
            tick_share=1 / ticks,
            others_cpu=min(1.0, max(0.0, work / ticks)) if self._own_server else None,
            steal=min(1.0, max(0.0, (after.steal - before.steal) / ticks)),
            others_gpu=gpu,
            absent=absent,
        )

    def _moment(self, processes: Mapping[int, Process]) -> _Moment | str:
        """The counters as they are now; a string says why there are none."""
        try:
            work, steal = _cpu_ticks((self._proc / "stat").read_text(), self._cpus)
        except (OSError, ValueError, IndexError) as error:
            return f"the kernel does not say how long the CPUs worked ({self._proc / 'stat'}: {type(error).__name__})"
        own = sum(processes[pid].ticks for pid in descendants(processes, self._root))
        return _Moment(clock_s=time.perf_counter(), work=work, steal=steal, own=own)


def busy_now(proc: Path = PROC) -> str:
    """What keeps this machine busy besides this process and its descendants, in words; empty if nothing does. A short look."""
    watch = OtherWorkWatch(proc=proc)
    time.sleep(watch.look_s)
    return disturbance(watch.ended())


def descendants(processes: Mapping[int, Process], root: int) -> Iterator[int]:
    """``root`` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    found = [root] if root in processes else []
    while found:
        pid = found.pop()
        found += children.get(pid, [])
        yield pid


def _root(wanted: tuple[int, int] | None, processes: Mapping[int, Process]) -> int:
    """The run's first process; this one if that has ended or is no ancestor, as when a job is run again by hand."""
    own = os.getpid()
    if wanted is None or wanted[0] not in processes or processes[wanted[0]].start != wanted[1]:
        return own
    return wanted[0] if own in descendants(processes, wanted[0]) else own


def _cpus_of(pid: int) -> set[int]:
    """Numbers of the CPUs that a process may use; empty where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return set()
    with contextlib.suppress(OSError):
        return os.sched_getaffinity(pid)
    return os.sched_getaffinity(0)


def _cpu_ticks(stat: str, cpus: Iterable[int]) -> tuple[int, int]:
    """Ticks that these CPUs worked, and ticks stolen from them, since boot. IndexError if none of them is listed."""
    names = {f"cpu{number}" for number in cpus}
    lines = [line.split() for line in stat.splitlines() if line.startswith("cpu")]
    numbers = [[int(part) for part in line[1:]] for line in lines if line[0] in names]
    if not numbers:
        raise IndexError("none of the CPUs is listed")
    return sum(each[index] for each in numbers for index in _WORK), sum(each[_STEAL] for each in numbers)


def _processes(proc: Path) -> dict[int, Process]:
    """All visible processes, by id."""
    try:
        pids = [int(path.name) for path in proc.iterdir() if path.name.isdecimal()]
    except OSError:
        return {}
    found = {pid: _process(proc, pid) for pid in pids}
    return {pid: process for pid, process in found.items() if process}


def _process(proc: Path, pid: int) -> Process | None:
    """The process with that id; None if it does not exist or has just ended."""
    try:
        fields = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return Process(parent=int(fields[_PARENT]), ticks=sum(map(int, fields[_TIMES])), start=int(fields[_START]))
    except (OSError, ValueError, IndexError):
        return None
