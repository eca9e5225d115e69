"""Engines: one file each. An engine runs a job folder somewhere and reports how that ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quantbench.core.job import FAILURE_FILE, TRACE_FILE, Failure, Job
from quantbench.core.registry import Registry
from quantbench.core.trace import Trace
from quantbench.core.wire import read


class OpenEngine(Protocol):
    """An opened engine."""

    def preloaded(self, job: Job) -> Mapping[str, float]:
        """Seconds of imports, by package, that a worker of ``job`` inherits instead of doing them itself."""

    def run(self, folder: Path, timeout_s: float) -> Failure | None:
        """Run the job in ``folder``; None when it succeeded."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A registered engine; ``open(device)`` starts what it needs and stops it again."""

    name: str
    about: str
    open: Callable[[str], AbstractContextManager[OpenEngine]]


ENGINES: Registry[Engine] = Registry("quantbench.running.engines", Engine, "engine", group="quantbench.engines")


def reported_failure(folder: Path) -> Failure | None:
    """The failure that the worker itself wrote down, if any."""
    path = folder / FAILURE_FILE
    return read(path, Failure) if path.is_file() else None


def collected_trace(folder: Path, index: int) -> Trace | None:
    """The trace of the job's ``index``-th prompt set, if the worker got that far."""
    path = folder / TRACE_FILE.format(index)
    return Trace.load(path) if path.is_file() else None
