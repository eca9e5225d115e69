"""When OpenMP's threads spin: never outside timed passes, and not in a timed pass once other processes need the CPUs.

A timed pass runs as is best on a quiet machine until another process is seen to use half a CPU. From then on spinning slows
the pass down, up to a hundredfold: its threads rest until its end, and its row is ``disturbed``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from quantbench.core.other_work import OtherWorkWatch
from quantbench.core.signals import Watched
from quantbench.core.waiting import Rest
from quantbench.measuring.signals import Watch

AFTERWARDS_SHARE = 0.25
"""At most this share of a job's time, from when its variant is opened, goes to what metrics do after timed passes."""


class Courtesy:
    """Makes this process yield to others. Create it well before the first timed pass, since it watches others from then on."""

    def __init__(self, rest: Rest, root: tuple[int, int] | None, device: str = "cpu", *, untimed: bool = False) -> None:
        """Threads rest until something is ``timed``; ``root`` and ``device`` are those of OtherWorkWatch.

        Where all is to stay ``untimed``, threads rest in passes too, and no signal watches them.
        """
        self._rest, self._root, self._device, self._untimed = rest, root, device, untimed
        self._watch = OtherWorkWatch(root, device)
        self._began, self._afterwards_s = time.perf_counter(), 0.0
        rest.begin()

    def loaded(self, *, untimed: bool = False) -> None:
        """Call it after libraries were loaded, so that their threads rest too; ``untimed`` if what was opened is not timed."""
        self._untimed = self._untimed or untimed
        self._rest.begin()

    @contextmanager
    def timed(self, about: Watched) -> Iterator[Timing]:
        """Inside this context a pass is timed and watched by the metrics' signals; ``about`` says what and where it is."""
        device = about.device or self._device
        others, rests = OtherWorkWatch(self._root, device), self._untimed or self._watch.crowded()
        about = replace(about, device=device, root=self._root, rested=lambda: self._rest.resting, spare_s=self._spare_s)
        watch = Watch(about)
        timing = Timing(self._rest, others, watch, rests=rests)
        try:
            with nullcontext() if self._untimed else watch:
                yield timing
        finally:
            self._afterwards_s += watch.afterwards_s
            self._rest.begin()

    def _spare_s(self) -> float:
        return AFTERWARDS_SHARE * (time.perf_counter() - self._began) - self._afterwards_s


class Timing:
    """One timed pass."""

    def __init__(self, rest: Rest, others: OtherWorkWatch, watch: Watch, *, rests: bool) -> None:
        """Threads spin, unless the machine was busy before."""
        self._rest, self._others, self.watch = rest, others, watch
        if not rests:
            rest.end()

    def look(self) -> None:
        """Call it after each round, while nothing is timed."""
        self.watch.look()
        if not self._rest.resting and self._others.crowded():
            self._rest.begin()

    def spoilt(self) -> bool:
        """Whether other processes used the CPUs so heavily that more rounds would not help."""
        return self._rest.resting or self._others.crowded()

    def rested(self) -> bool:
        """Whether threads are resting."""
        return self._rest.resting
