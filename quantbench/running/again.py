"""Measures again, at the end of a run, what other work disturbed: at most twice, and only once the machine is quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from quantbench.core.other_work import busy_now
from quantbench.core.scenario import Scenario

TIMES = 2
"""The most times that a variant is measured again."""

SHARE = 0.5
"""Measuring again may take at most this share of the run's time until then."""

QUIET_WITHIN_S = 20.0
"""Seconds to wait for a quiet moment, each time: if others work for longer, measuring again would not help."""

_PAUSE_S = 0.5


class Measurer(Protocol):
    """The part of a runner that measuring again needs."""

    def disturbed(self) -> Sequence[Sequence[Scenario]]:
        """The scenarios that other work disturbed, by job."""

    def took_s(self, group: Sequence[Scenario]) -> float:
        """Seconds that the job of these scenarios took."""

    def measure_again(self, group: Sequence[Scenario]) -> None:
        """Measure scenarios of one job once more."""


@dataclass(frozen=True, slots=True)
class Only:
    """A runner of which only some scenarios count."""

    runner: Measurer
    scenarios: Collection[Scenario]

    def disturbed(self) -> Sequence[Sequence[Scenario]]:
        """See Measurer."""
        groups = ([each for each in group if each in self.scenarios] for group in self.runner.disturbed())
        return [group for group in groups if group]

    def took_s(self, group: Sequence[Scenario]) -> float:
        """See Measurer."""
        return self.runner.took_s(group)

    def measure_again(self, group: Sequence[Scenario]) -> None:
        """See Measurer."""
        self.runner.measure_again(group)


@dataclass(slots=True)
class Again:
    """The scenarios measured again, how many are still disturbed, and why those were left."""

    scenarios: list[Scenario] = field(default_factory=list)
    left: int = 0
    why: str = ""

    @property
    def sentences(self) -> Iterator[str]:
        """Sentences about it; none where nothing had been disturbed."""
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
    """Measure again, within ``budget_s`` seconds, what was disturbed; a job that is not expected to fit is skipped."""
    done = Again()
    deadline = clock() + budget_s
    for group in (group for _ in range(TIMES) for group in runner.disturbed()):
        if clock() + runner.took_s(group) > deadline:
            done.why = "measuring more of them again would have taken over half of the run's time"
            continue
        if found := _still_busy(min(deadline, clock() + QUIET_WITHIN_S), busy, clock, sleep):
            done.why = f"the machine stayed busy ({found})"
            break
        runner.measure_again(group)
        done.scenarios += group
    done.left = sum(map(len, runner.disturbed()))
    return done


def _still_busy(until: float, busy: Callable[[], str], clock: Callable[[], float], sleep: Callable[[float], None]) -> str:
    """What still keeps the machine busy at the moment ``until``; empty as soon as nothing does."""
    while found := busy():
        if clock() >= until:
            return found
        sleep(_PAUSE_S)
    return ""
