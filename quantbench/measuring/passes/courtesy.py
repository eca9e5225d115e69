"""Who spins when: threads of OpenMP rest in all that is not timed, and in what is timed once others need the CPUs.

A timed pass runs as is best on a quiet machine until another process is seen to take half of a CPU. Spinning then costs it
more than it gains, up to a hundred times: threads rest for the remainder of the pass, and its row is ``disturbed``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from quantbench.core.other_work import OtherWorkWatch
from quantbench.core.signals import Watched
from quantbench.core.waiting import Rest
from quantbench.measuring.signals import Watch


class Courtesy:
    """How this process behaves beside others, from when it is made, which should be a while before the first timed pass."""

    def __init__(self, rest: Rest, root: tuple[int, int] | None, device: str = "cpu") -> None:
        """Threads rest until something is ``timed``; ``root`` and ``device`` are as OtherWorkWatch takes them."""
        self._rest, self._root, self._device = rest, root, device
        self._watch = OtherWorkWatch(root, device)
        rest.begin()

    def loaded(self) -> None:
        """To be called when libraries were loaded, whose threads shall rest too."""
        self._rest.begin()

    @contextmanager
    def timed(self, about: Watched) -> Iterator[Timing]:
        """What runs within is timed, and watched by the signals of metrics; ``about`` says what it is and where it runs."""
        device = about.device or self._device
        others, rests = OtherWorkWatch(self._root, device), self._watch.crowded()
        watch = Watch(replace(about, device=device, root=self._root, rested=lambda: self._rest.resting))
        timing = Timing(self._rest, others, watch, rests=rests)
        try:
            with watch:
                yield timing
        finally:
            self._rest.begin()


class Timing:
    """One timed pass."""

    def __init__(self, rest: Rest, others: OtherWorkWatch, watch: Watch, *, rests: bool) -> None:
        """Threads spin, unless the machine was found busy before."""
        self._rest, self._others, self.watch = rest, others, watch
        if not rests:
            rest.end()

    def look(self) -> None:
        """To be called after each round, when no clock runs."""
        self.watch.look()
        if not self._rest.resting and self._others.crowded():
            self._rest.begin()

    def spoilt(self) -> bool:
        """Whether others worked so much that more rounds would not help."""
        return self._rest.resting or self._others.crowded()

    def rested(self) -> bool:
        """Whether threads rest by now."""
        return self._rest.resting
