"""Runs the signals of all metrics around one pass, and collects what they report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from quantbench.core.signals import Found, Signal, Watched
from quantbench.metrics import METRICS


@dataclass(slots=True)
class Watch:
    """All signals of one pass. Use as a context manager; deferred work runs before it exits, if the pass succeeded."""

    about: Watched
    afterwards_s: float = 0.0
    """How long deferred work took."""
    _watched: dict[str, Watched] = field(default_factory=dict)
    _opened: dict[str, ExitStack] = field(default_factory=dict)

    def __enter__(self) -> Self:
        """Start watching."""
        for metric in METRICS:
            if metric.signal:
                self._watched[metric.name] = replace(self.about, looks=[], later=[])
                self._opened[metric.name] = ExitStack()
                self._enter(metric.name, metric.signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop watching."""
        for name, stack in reversed(self._opened.items()):
            self._guarded(name, stack.close)
        began = time.perf_counter()
        for name, watched in self._watched.items():
            for work in watched.later if kind is None else ():
                self._guarded(name, work)
        self.afterwards_s = time.perf_counter() - began

    def look(self) -> None:
        """Call it after each round, while nothing is timed."""
        for name, watched in self._watched.items():
            for look in watched.looks:
                self._guarded(name, look)

    @property
    def signals(self) -> Mapping[str, Found]:
        """The reports by metric name, without those of metrics that had nothing to watch."""
        return {name: watched.found for name, watched in self._watched.items() if watched.found}

    def _enter(self, name: str, signal: Signal) -> None:
        self._guarded(name, lambda: self._opened[name].enter_context(signal(self._watched[name])))

    def _guarded(self, name: str, step: Callable[[], object]) -> None:
        """Run one step of a signal; a signal that fails is dropped."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - a signal may be a plug-in's; its failure costs only its own figures
            watched = self._watched[name]
            watched.looks, watched.later = [], []
            watched.tell(f"its signal failed: {type(error).__name__}: {error}")
