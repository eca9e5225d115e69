"""The jobs of one run: each in its own folder, run by the run's engine."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from quantbench.core.checksums import said
from quantbench.core.disks import means_full, which_full
from quantbench.core.errors import QuantbenchError, UsageError
from quantbench.core.job import REFERENCE_FOLDER, Failure, Job, JobKind, Task
from quantbench.core.other_work import this_process
from quantbench.core.record import Status
from quantbench.core.scratch import held, scratch_folder
from quantbench.core.trace import Trace
from quantbench.planning.case import Case
from quantbench.planning.options import Plan
from quantbench.running.engines import ENGINES, OpenEngine, collected_trace
from quantbench.running.progress import Progress


class Jobs:
    """Runs jobs one after the other. Use as a context manager; nothing is started before the first one."""

    def __init__(self, plan: Plan, run_id: str, progress: Progress) -> None:
        """Job folders are kept, under the run's id, if ``plan`` says so."""
        self._plan = plan
        self._run_id = run_id
        self._progress = progress
        self._stack = ExitStack()
        self._count = 0
        self._opened: OpenEngine | None = None
        self._last = Path()
        self._said: Sequence[str] | None = None

    def __enter__(self) -> Self:
        """Nothing is started yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the engine and remove the scratch folder."""
        if "folder" in vars(self):
            self._said = said(self.folder)
        self._stack.close()

    @property
    def notes(self) -> Sequence[str]:
        """What workers have reported so far, such as a cache entry that was made again."""
        if self._said is None and "folder" in vars(self):
            return said(self.folder)
        return self._said or []

    @cached_property
    def folder(self) -> Path:
        """The run's own folder: runs that keep their jobs in one place do not share it, nor do a run and its resumption."""
        if not self._plan.keep_jobs:
            return self._stack.enter_context(scratch_folder())
        place = self._plan.keep_jobs
        try:
            place.mkdir(parents=True, exist_ok=True)
            folder = _new_folder(place, self._run_id)
        except OSError as error:
            raise UsageError(f"jobs cannot be kept in {place} ({error.strerror}); give another --keep-jobs") from error
        self._stack.enter_context(held(folder))
        return folder

    def run(
        self, kind: JobKind, case: Case, tasks: Sequence[Task], *, probes: Path | None = None, into: Path | None = None
    ) -> tuple[Path, Failure | None]:
        """Run one job; a reference is written directly ``into`` its final folder, which may be on another disk.

        An engine that fails costs only this job; the next one gets a new engine.
        """
        assert case.checkpoint is not None
        scenario = case.scenario
        folder = Path()
        try:
            folder = self._last = self.folder / f"{self._count:03d}-{scenario.variant.label}-{kind}"
            self._count += 1
            shutil.rmtree(folder, ignore_errors=True)  # left by an earlier run that kept its jobs here
            folder.mkdir()
            if into:
                (folder / REFERENCE_FOLDER.format(0)).symlink_to(into)
            self._progress.working(kind, folder)
            engine = self._engine(scenario.conditions.device)
            job = Job(
                kind=kind,
                checkpoint=case.checkpoint,
                original=case.original,
                variant=case.variant,
                conditions=scenario.conditions,
                effort=self._plan.effort,
                tasks=tuple(tasks),
                probes=probes,
                root=this_process(),
            )
            replace(job, preloaded=dict(engine.preloaded(job))).save(folder)
            return folder, engine.run(folder, self._plan.effort.timeout_s)
        except (QuantbenchError, OSError) as error:
            self._opened = None
            reason = which_full(folder, error) if means_full(error) else str(error)
            return folder, Failure(status=Status.CRASHED, reason=reason)

    def left_behind(self, count: int) -> Mapping[int, Trace]:
        """The traces that the latest job has written so far, by the index of its ``count`` prompt sets."""
        found = {index: collected_trace(self._last, index) for index in range(count)}
        return {index: trace for index, trace in found.items() if trace}

    def _engine(self, device: str) -> OpenEngine:
        if self._opened is None:
            self._opened = self._stack.enter_context(ENGINES[self._plan.engine].open(device))
        return self._opened


def _new_folder(place: Path, name: str) -> Path:
    """A folder of that name, or of the first one with a number that is not there yet."""
    for number in count(1):
        folder = place / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError
