"""Measuring again, at the end of a run, what other work disturbed: at most twice, and only once the machine is quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from quantbench.core.other_work import busy_now
from quantbench.core.scenario import Scenario

TIMES = 2
"""So often at most is a variant measured again."""

SHARE = 0.5
"""Of what the run took until then, all of it may take so much."""

QUIET_WITHIN_S = 20.0
"""So long is waited for a quiet moment, each time: with others at work for longer, measuring again would not help."""

_PAUSE_S = 0.5


class Measurer(Protocol):
    """What is asked of a runner."""

    def disturbed(self) -> Sequence[Sequence[Scenario]]:
        """What other work disturbed, by job."""

    def took_s(self, group: Sequence[Scenario]) -> float:
        """Seconds that the job of these scenarios took."""

    def measure_again(self, group: Sequence[Scenario]) -> None:
        """Measure scenarios of one job once more."""


@dataclass(slots=True)
class Again:
    """What was measured again, and why what is still disturbed was not."""

    scenarios: list[Scenario] = field(default_factory=list)
    left: int = 0
    why: str = ""

    @property
    def sentences(self) -> Iterator[str]:
        """What to say of it; nothing where nothing had been disturbed."""
        count = len(set(self.scenarios))
        if count:
            were = "scenario was" if count == 1 else "scenarios were"
            yield f"measured beside other work: {count} {were} measured again at the end"
        if self.left:
            still = "scenario is" if self.left == 1 else "scenarios are"
            yield f"measured beside other work: {self.left} {still} marked ~{f'; {self.why}' if self.why else ''}"


def measure_again(
    runner: Measurer,
    *,
    budget_s: float,
    busy: Callable[[], str] = busy_now,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Again:
    """Measure again, within ``budget_s`` seconds, what was disturbed; a job that is not expected to fit is left."""
    done = Again()
    deadline = clock() + budget_s
    for group in (group for _ in range(TIMES) for group in runner.disturbed()):
        if clock() + runner.took_s(group) > deadline:
            done.why = "measuring more again would have taken over half of the run's time"
            continue
        if found := _still_busy(min(deadline, clock() + QUIET_WITHIN_S), busy, clock, sleep):
            done.why = f"the machine stayed busy ({found})"
            break
        runner.measure_again(group)
        done.scenarios += group
    done.left = sum(map(len, runner.disturbed()))
    return done


def _still_busy(until: float, busy: Callable[[], str], clock: Callable[[], float], sleep: Callable[[float], None]) -> str:
    """What keeps the machine busy up to that moment; empty as soon as nothing does."""
    while found := busy():
        if clock() >= until:
            return found
        sleep(_PAUSE_S)
    return ""
