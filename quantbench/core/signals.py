"""Signals: what a metric wants to see while a pass runs, brought by the metric's own file.

A signal is a context manager around the pass, as a generator function is by ``contextlib.contextmanager``::

    @contextmanager
    def watch(during: Watched) -> Iterator[None]:
        seen: list[float] = []
        during.after_round(lambda: seen.append(temperature()))

Yield:
        during.tell({"hottest": max(seen, default=None)})

    @metric(Column("hottest", "degrees C"), signal=watch)
    def heat(trace, reference):
        return {"hottest": trace.signals["heat"]["hottest"]}

What it tells is kept in ``Trace.signals`` under the metric's name. One that fails costs its own figures only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

PassName = Literal["scoring", "latency", "calls", "serving"]
"""Scored positions, timed answers, timed calls of a module, and requests to a server."""

Found = Mapping[str, Any] | str
"""Figures by name, of values that JSON knows; a string says why there are none."""


@dataclass(slots=True, kw_only=True)
class Watched:
    """The pass that a signal watches.

    ``device`` is where the weights are: ``cpu``, ``cuda:N``, several joined by ``+``, empty of a server. ``root`` is the run's
    first process by id and start time: all below it is the run's own work. ``own_server`` is False where somebody else's server
    works for the run. ``rested`` says whether threads gave way to other work so far.

    ``answers``, where the pass generates, are answers to its prompts in turn, without end; each gives, step by step, how many
    tokens that step made. ``synchronize`` waits until the device has finished what was asked of it.
    """

    name: PassName
    device: str = ""
    root: tuple[int, int] | None = None
    own_server: bool = True
    rested: Callable[[], bool] = lambda: False
    answers: Callable[[], Iterator[Iterator[int]]] | None = None
    synchronize: Callable[[], None] = lambda: None
    found: Found = ""
    looks: list[Callable[[], None]] = field(default_factory=list)
    later: list[Callable[[], None]] = field(default_factory=list)

    def after_round(self, look: Callable[[], None]) -> None:
        """Call ``look`` after each round, when no clock runs."""
        self.looks.append(look)

    def afterwards(self, work: Callable[[], None]) -> None:
        """Call ``work`` when the pass is over and nothing watches any more; it may take its time, and generate."""
        self.later.append(work)

    def tell(self, found: Found) -> None:
        """What was found; what is told last counts."""
        self.found = found


Signal = Callable[[Watched], AbstractContextManager[None]]
