"""The progress of a long run: the current variant, its stage and the time left."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from threading import Event, Thread
from typing import Protocol

from quantbench.core.job import STAGE_FILE, JobKind
from quantbench.core.record import Record
from quantbench.core.scenario import JobKey, Scenario, short_name

LOOK_S = 1.0
"""Seconds between two updates of the stage and the line; never done in the process that is timed."""

_STAGES: dict[JobKind, str] = {
    "reference": "making the reference", "prepare": "preparing", "probe": "probing", "measure": "starting",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Estimated seconds of a job: to measure its variant, and to make what other jobs share."""

    measure_s: float
    reference_s: float = 0.0
    prepare_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where a run stands: at the ``number``-th of ``total`` variants. ``left_s`` is None while it is unknown."""

    number: int
    total: int
    variant: str
    stage: str
    elapsed_s: float
    left_s: float | None

    @property
    def left(self) -> str:
        """The time left in words; a dash until something is known."""
        return "- left" if self.left_s is None else f"about {duration(self.left_s)} left"


class Display(Protocol):
    """Shows a run's progress."""

    def show(self, moment: Moment) -> None:
        """A variant is being measured; called when it begins, then about once a second."""

    def done(self, moment: Moment) -> None:
        """A variant is done; its stage says how."""

    def clear(self) -> None:
        """Make room for pytest's own output."""

    def close(self) -> None:
        """Nothing more will be shown."""


class Progress:
    """Follows a run job by job (one variant with its prompt sets each); shows nothing without a display."""

    def __init__(
        self,
        display: Display | None = None,
        *,
        jobs: int = 0,
        polls: bool = True,
        clock: Callable[[], float] = time.monotonic,
        expected: Mapping[JobKey, Expected] | None = None,
    ) -> None:
        """``jobs`` is their number. Without ``polls`` nothing runs beside a job, which may run in this very process.

        ``expected`` has the estimates of jobs. The time left follows from them, corrected by what the measured jobs really
        took; a job without one is taken to last as long as others without one did. Where no job has an estimate, it follows
        from the mean of the measured ones.
        """
        self._expected = dict(expected or {})
        self._rest = dict(self._expected)
        self._key: JobKey | None = None
        self._once: dict[str, float] = {}
        self._once_began: tuple[str, float] | None = None
        self._paces: list[tuple[float, float]] = []
        self._took: dict[JobKey, float] = {}
        """Seconds that measuring took, without what was made once."""
        self._prepared: dict[str, list[float]] = {}
        """Seconds that artifacts took to make, over what was estimated, by method."""
        self._display = display
        self._jobs = jobs
        self._polls = polls
        self._clock = clock
        self._done = 0
        self._taken: list[float] = []
        """Seconds of the jobs that measured something: those that failed at once say nothing about the time left."""
        self._untold: list[float] = []
        """The same of those that had no estimate."""
        self._started = 0.0
        self._measured = False
        self._variant = self._stage = ""
        self._folder: Path | None = None
        self._statuses: list[str] = []

    @contextmanager
    def job(self, scenarios: Sequence[Scenario], *, again: bool = False) -> Iterator[None]:
        """Wrap the job of these scenarios; doing it ``again`` counts as one more job."""
        first = scenarios[0]
        self._jobs += again
        marks = " (again)" * again + " (control)" * first.variant.control + (f" #{first.repeat + 1}" if first.repeat else "")
        self._variant = f"{short_name(first.model)} {first.variant.name}{marks}"
        self._stage, self._folder, self._statuses = "starting", None, []
        self._started, self._measured = self._clock(), False
        self._key, self._once, self._once_began = first.job, {}, None
        if again and first.job in self._took:
            self._rest[first.job] = Expected(measure_s=self._took[first.job] / (self.pace or 1.0))
        self._look()
        try:
            with self._polling():
                yield
        finally:
            if self._display:
                self._display.clear()
        elapsed = self._clock() - self._started
        self._taken += [elapsed] if self._measured else []
        self._done += 1
        self._learn(elapsed)
        if self._display:
            counts = Counter(self._statuses)
            ending = "".join(counts) if len(counts) < 2 else ", ".join(f"{count} {status}" for status, count in counts.items())
            self._display.done(self._moment(self._done, ending or "nothing stored", elapsed, 0.0))

    def working(self, kind: JobKind, folder: Path | None = None) -> None:
        """A process starts in ``folder``; one that measures writes its stage there. None where it is out of sight."""
        self._note_once(kind)
        self._stage, self._folder = _STAGES[kind], folder if kind == "measure" else None
        self._measured = self._measured or kind == "measure"
        if not self._polls:
            self._look()

    @property
    def pace(self) -> float | None:
        """Time taken by measuring over its estimate, so far; None while unknown."""
        took, estimated = map(sum, zip(*self._paces, strict=True)) if self._paces else (0.0, 0.0)
        return took / estimated if took and estimated else None

    def _note_once(self, kind: str) -> None:
        """Time shared work separately: it says nothing about the variants to come."""
        now = self._clock()
        if self._once_began:
            before, since = self._once_began
            self._once[before] = self._once.get(before, 0.0) + now - since
        self._once_began = (kind, now) if kind in ("reference", "prepare") else None

    def _learn(self, elapsed_s: float) -> None:
        """Compare a job that is done with its estimate."""
        self._note_once("")
        key, self._key = self._key, None
        estimate = self._rest.pop(key, None) if key else None
        self._untold += [elapsed_s] if self._measured and not estimate else []
        if estimate and self._measured and key:
            self._took[key] = elapsed_s - sum(self._once.values())
            self._paces.append((self._took[key], estimate.measure_s))
            if estimate.prepare_s:
                ratio = self._once.get("prepare", 0.0) / estimate.prepare_s
                self._prepared.setdefault(key[1].method, []).append(ratio)

    def _estimated(self, elapsed_s: float, left: int) -> float | None:
        """Estimated seconds left, ``elapsed_s`` into the current job and ``left`` jobs after it; None without estimates."""
        if not self._expected:
            return None
        pace = self.pace or 1.0
        jobs = {
            key: pace * each.measure_s + each.reference_s + self._preparing(key[1].method) * each.prepare_s
            for key, each in self._rest.items()
        }
        untold = fmean(self._untold or jobs.values() or self._taken or [0.0])
        here = (jobs.pop(self._key) if self._key in jobs else untold) if self._key else 0.0
        return sum(jobs.values()) + max(0, left - len(jobs)) * untold + max(0.0, here - elapsed_s)

    def _preparing(self, method: str) -> float:
        """The factor for what artifacts of this method are estimated to take.

        One that takes very long, or was kept from before, says little about the next: hence the median. That other methods'
        were kept lets hope for this one's; that they were slow, as calibrating is, does not make it slow.
        """
        if own := self._prepared.get(method):
            return median(own)
        return min(1.0, median([*chain.from_iterable(self._prepared.values())] or [1.0]))

    def ended(self, record: Record) -> None:
        """A scenario of the job got its record."""
        self._statuses.append(str(record.status))

    def close(self) -> None:
        """Show nothing more."""
        if self._display:
            self._display.close()

    @contextmanager
    def _polling(self) -> Iterator[None]:
        if not self._display or not self._polls:
            yield
            return
        ended = Event()

        def poll() -> None:
            while not ended.wait(LOOK_S):
                self._look()

        watcher = Thread(target=poll, daemon=True)
        with contextlib.suppress(RuntimeError):  # no further thread may be started: the stage is then not seen to change
            watcher.start()
        try:
            yield
        finally:
            ended.set()
            if watcher.ident is not None:
                watcher.join()

    def _look(self) -> None:
        if not self._display:
            return
        stage, folder = self._stage, self._folder  # another thread sets them
        if folder:
            with contextlib.suppress(OSError, ValueError):
                stage = (folder / STAGE_FILE).read_text()
        elapsed = self._clock() - self._started
        rest = max(0.0, fmean(self._taken) - elapsed) if self._taken else 0.0
        self._display.show(self._moment(self._done + 1, stage, elapsed, rest))

    def _moment(self, number: int, stage: str, elapsed_s: float, rest_s: float) -> Moment:
        """``rest_s`` is the time left of the current job."""
        total = max(self._jobs, number)
        left = self._estimated(elapsed_s, total - number)
        if left is None and self._taken:
            left = rest_s + fmean(self._taken) * (total - number)
        return Moment(number=number, total=total, variant=self._variant, stage=stage, elapsed_s=elapsed_s, left_s=left)


def duration(seconds: float) -> str:
    """A duration rounded for people: ``45 s``, ``12 min`` or ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
