"""Who spins when: threads of OpenMP rest in all that is not timed, and in what is timed once others need the CPUs.

A timed pass runs as is best on a quiet machine until another process is seen to take half of a CPU. Spinning then costs it
more than it gains, up to a hundred times: threads rest for the remainder of the pass, and its row is ``disturbed``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from quantbench.core.trace import OtherWork
from quantbench.core.waiting import Rest
from quantbench.measuring.passes.other_work import OtherWorkWatch


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
    def timed(self, device: str = "") -> Iterator[Timing]:
        """What runs within is timed, on ``device`` where the model says so itself."""
        timing = Timing(self._rest, OtherWorkWatch(self._root, device or self._device), rests=self._watch.crowded())
        try:
            yield timing
        finally:
            self._rest.begin()


class Timing:
    """One timed pass."""

    def __init__(self, rest: Rest, watch: OtherWorkWatch, *, rests: bool) -> None:
        """Threads spin, unless the machine was found busy before."""
        self._rest, self._watch = rest, watch
        if not rests:
            rest.end()

    def look(self) -> None:
        """To be called after each round, when no clock runs."""
        self._watch.look()
        if not self._rest.resting and self._watch.crowded():
            self._rest.begin()

    def spoilt(self) -> bool:
        """Whether others worked so much that more rounds would not help."""
        return self._rest.resting or self._watch.crowded()

    def ended(self) -> OtherWork:
        """What others did meanwhile; to be called right after the last round."""
        return replace(self._watch.ended(), rested=self._rest.resting)
