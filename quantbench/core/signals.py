"""Signals: what a metric observes while a pass runs, defined in the metric's own file.

A signal is a context manager around the pass, for example a generator function with ``contextlib.contextmanager``::

    @contextmanager
    def watch(during: Watched) -> Iterator[None]:
        seen: list[float] = []
        during.after_round(lambda: seen.append(temperature()))

Yield:
        during.tell({"hottest": max(seen, default=None)})

    @metric(Column("hottest", "degrees C"), signal=watch)
    def heat(trace, reference):
        return {"hottest": trace.signals["heat"]["hottest"]}

What it reports is kept in ``Trace.signals`` under the metric's name. A signal that fails costs only its own figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

PassName = Literal["scoring", "latency", "calls", "serving"]
"""Scored positions, timed answers, timed calls of a module, and requests to a server."""

Found = Mapping[str, Any] | str
"""Figures by name, with JSON values; a string says why there are none."""


@dataclass(slots=True, kw_only=True)
class Watched:
    """The pass that a signal watches.

    ``device`` is where the weights are: ``cpu``, ``cuda:N``, several joined by ``+``, empty for a server. ``root`` is the run's
    first process by id and start time: its descendants are the run's own work. ``own_server`` is False if a server works for
    the run that the run did not start. ``rested`` says whether threads have given way to other work so far.

    ``answers``, if the pass generates, yields answers to its prompts in turn, endlessly; each answer yields, step by step, how
    many tokens that step made; ``no_answers`` says why it gives none, if that was asked for. ``synchronize`` waits until the
    device has finished all submitted work. ``spare_s`` says how many seconds work ``afterwards`` may take.
    """

    name: PassName
    device: str = ""
    root: tuple[int, int] | None = None
    own_server: bool = True
    rested: Callable[[], bool] = lambda: False
    answers: Callable[[], Iterator[Iterator[int]]] | None = None
    no_answers: str = ""
    synchronize: Callable[[], None] = lambda: None
    spare_s: Callable[[], float] = lambda: math.inf
    found: Found = ""
    looks: list[Callable[[], None]] = field(default_factory=list)
    later: list[Callable[[], None]] = field(default_factory=list)

    def after_round(self, look: Callable[[], None]) -> None:
        """Call ``look`` after each round, outside any timing."""
        self.looks.append(look)

    def afterwards(self, work: Callable[[], None]) -> None:
        """Call ``work`` after the pass, when nothing is being watched; it may generate, for at most ``spare_s()`` seconds."""
        self.later.append(work)

    def tell(self, found: Found) -> None:
        """Report what was found; a later report replaces an earlier one."""
        self.found = found


Signal = Callable[[Watched], AbstractContextManager[None]]
