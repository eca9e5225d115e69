"""Engines: one file each. An engine runs a job folder somewhere and reports how that ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quantbench.core.job import FAILURE_FILE, TRACE_FILE, Failure, Job
from quantbench.core.registry import Registry
from quantbench.core.trace import Trace
from quantbench.core.wire import read

if TYPE_CHECKING:
    from quantbench.running.errand import Errand, Order, Report


class OpenEngine(Protocol):
    """An opened engine."""

    def preloaded(self, job: Job) -> Mapping[str, float]:
        """Seconds of imports, by package, that a worker of ``job`` inherits instead of doing them itself."""

    def run(self, folder: Path, timeout_s: float) -> Failure | None:
        """Run the job in ``folder``; None when it succeeded."""


class OpenFleet(Protocol):
    """Machines that errands can be sent to."""

    def send(self, errands: Sequence[Errand]) -> None:
        """Have errands carried out, each as soon as a machine has room; UsageError where none ever will."""

    def ended(self, timeout_s: float) -> Sequence[tuple[Errand, Report | Failure]]:
        """The errands that ended since the last call; waits for the first of them, but not longer than ``timeout_s``."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user is to be told of the machines, such as a loss."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A registered engine; ``open(device)`` starts what it needs and stops it again.

    One that has a ``fleet`` sends whole jobs to other machines, where ``open`` runs them; what is sent is called off when the
    fleet is left. UsageError where it cannot be reached.
    """

    name: str
    about: str
    open: Callable[[str], AbstractContextManager[OpenEngine]]
    fleet: Callable[[Order], AbstractContextManager[OpenFleet]] | None = None


ENGINES: Registry[Engine] = Registry("quantbench.running.engines", Engine, "engine", group="quantbench.engines")


def reported_failure(folder: Path) -> Failure | None:
    """The failure that the worker itself wrote down, if any."""
    path = folder / FAILURE_FILE
    return read(path, Failure) if path.is_file() else None


def collected_trace(folder: Path, index: int) -> Trace | None:
    """The trace of the job's ``index``-th prompt set, if the worker got that far."""
    path = folder / TRACE_FILE.format(index)
    return Trace.load(path) if path.is_file() else None
