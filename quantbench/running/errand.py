"""What a fleet sends to its machines and gets back: an errand is one job with everything that a machine has to know for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantbench.core.record import Record
    from quantbench.core.scenario import Scenario
    from quantbench.core.trace import Trace
    from quantbench.planning.options import Plan
    from quantbench.results.resume import Key
    from quantbench.results.store import Run
    from quantbench.running.placing import Need


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What all errands of a run have in common.

    ``results`` is absolute, or a URI; ``folder`` is the one that relative names of models and files start from.
    """

    run: Run
    plan: Plan
    results: str
    folder: Path

    def without_scenarios(self) -> Order:
        """What an errand carries of it: only its own scenarios concern it."""
        return replace(self, plan=replace(self.plan, scenarios=()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """Scenarios of one job, their variant to be ``probed`` or not; ``numbers`` are those of their files in the store."""

    order: Order
    scenarios: tuple[Scenario, ...]
    numbers: Mapping[Key, int]
    probed: bool
    need: Need


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A scenario's record, its stored row, and its trace where it was measured; ``resumed`` if it had been stored before."""

    record: Record
    row: Mapping[str, Any]
    trace: Trace | None
    resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of an errand. ``unstored`` says why rows could not be stored; ``notes`` are for the user."""

    outcomes: tuple[Outcome, ...]
    unstored: Mapping[Scenario, str]
    notes: tuple[str, ...]
