"""A run whose jobs go to other machines: sends all of them at its start, and takes in what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from quantbench.core.errors import StoreError, UsageError
from quantbench.core.job import Failure
from quantbench.core.record import Record
from quantbench.core.scenario import JobKey, Scenario
from quantbench.core.trace import Trace
from quantbench.planning.case import Cases
from quantbench.results.resume import Key
from quantbench.results.store import Store
from quantbench.running import estimate
from quantbench.running.engines import ENGINES, OpenFleet
from quantbench.running.errand import Errand, Order, Report
from quantbench.running.placing import need_of
from quantbench.running.progress import Progress
from quantbench.running.recorder import failed
from quantbench.running.runner import checks_the_instrument
from quantbench.running.submission import submission_order

_LOOK_S = 1.0


class FleetRunner:
    """Has the face of a Runner; its rows are stored by the machines that measure them.

    ``measure`` waits until the scenario's machine has reported. Use as a context manager.
    """

    def __init__(self, order: Order, store: Store, numbers: Mapping[Key, int], progress: Progress) -> None:
        """``order`` has the run's scenarios in its plan; ``numbers`` are those that a resumed run has stored rows under.

        ``store`` takes the rows of jobs that no machine could report on.
        """
        self._order, self._store, self._progress = order, store, progress
        self._stack = ExitStack()
        self._fleet: OpenFleet | None = None
        self._numbers = _numbered(order.plan.scenarios, numbers)
        self._records: dict[Scenario, Record] = {}
        self._rows: dict[Scenario, Mapping[str, Any]] = {}
        self._traces: dict[Scenario, Trace] = {}
        self._unstored: dict[Scenario, str] = {}
        self._notes: dict[str, None] = {}
        self.resumed: list[Scenario] = []
        """Scenarios whose rows had been stored before."""
        self._jobs: dict[JobKey, list[Scenario]] = {}
        for scenario in order.plan.scenarios:
            self._jobs.setdefault(scenario.job, []).append(scenario)
        self._cases = Cases(trust_remote_code=order.plan.trust_remote_code)

    def __enter__(self) -> Self:
        """Join the fleet and send it everything; UsageError where it cannot be reached, or has no machine for a job."""
        fleet = ENGINES[self._order.plan.engine].fleet
        assert fleet is not None
        with ExitStack() as stack:
            self._fleet = stack.enter_context(fleet(self._order))
            probed = self._order.plan.probed
            errands = [self._errand(group, probed=group[0].variant.name in probed) for group in self._jobs.values()]
            self._fleet.send(self._in_order(errands))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Call off what still runs, and leave the fleet."""
        self._stack.close()

    @property
    def notes(self) -> Sequence[str]:
        """What machines have reported so far, and what became of them."""
        return (*self._notes, *(self._fleet.notes if self._fleet else ()))

    @property
    def records(self) -> Sequence[Record]:
        """All records so far, in the order in which they came."""
        return tuple(self._records.values())

    def measure(self, scenario: Scenario) -> Record:
        """The record of a planned scenario, as soon as it has come; its rows are stored by then."""
        if not self._settled(scenario):
            with self._progress.job(self._jobs[scenario.job]):
                self._progress.working("measure")
                while not self._settled(scenario):
                    self._take_in()
                for each in self._jobs[scenario.job]:
                    if each in self._records:
                        self._progress.ended(self._records[each])
        if scenario in self._unstored:
            raise StoreError(self._unstored[scenario])
        return self._records[scenario]

    def add(self, scenario: Scenario, *, probed: bool) -> None:
        """Plan one more scenario, its variant to be ``probed`` or not, and send it."""
        group = self._jobs.setdefault(scenario.job, [])
        if scenario not in group:
            group.append(scenario)
            self._numbers.setdefault((scenario.id, scenario.repeat), 1 + max(self._numbers.values(), default=-1))
            self._opened.send([self._errand([scenario], probed=probed)])

    def row(self, record: Record) -> Mapping[str, Any]:
        """The record's row of ``scenarios``, as stored."""
        return self._rows[record.scenario]

    def trace(self, scenario: Scenario) -> Trace | None:
        """The worker's trace of a scenario that was measured successfully."""
        return self._traces.get(scenario)

    def disturbed(self) -> Sequence[Sequence[Scenario]]:
        """None: each machine has measured again what was disturbed there."""
        return ()

    def took_s(self, group: Sequence[Scenario]) -> float:  # noqa: ARG002 - a Measurer's
        """Unknown here, and of no use, as nothing is measured again."""
        return 0.0

    def measure_again(self, group: Sequence[Scenario]) -> None:
        """Never asked for, as nothing is ``disturbed``."""
        raise AssertionError(group)

    def _in_order(self, errands: Sequence[Errand]) -> Sequence[Errand]:
        """Errands as they are best sent. How long they take here tells which take longest there."""
        plan = self._order.plan
        if not errands:
            return errands
        conditions = plan.scenarios[0].conditions
        machine, _ = estimate.this_machine(conditions.device, conditions.threads)
        known = estimate.expected(plan.scenarios, plan.effort, machine)
        jobs = [(errand.need, known.get(errand.scenarios[0].job)) for errand in errands]
        order = submission_order([(need, told.measure_s if told else None) for need, told in jobs])
        return [errands[index] for index in order]

    @property
    def _opened(self) -> OpenFleet:
        assert self._fleet is not None
        return self._fleet

    def _settled(self, scenario: Scenario) -> bool:
        return scenario in self._records or scenario in self._unstored

    def _errand(self, group: Sequence[Scenario], *, probed: bool) -> Errand:
        conditions = group[0].conditions
        if ":" in conditions.device:
            raise UsageError(
                f"--device {conditions.device} names one GPU of this machine, and engine {self._order.plan.engine!r} measures "
                "on others; give cuda, and each job gets a GPU of its own"
            )
        return Errand(
            order=self._order.without_scenarios(),
            scenarios=tuple(group),
            numbers={key: self._numbers[key] for each in group for key in [(each.id, each.repeat)]},
            probed=probed,
            need=need_of(conditions, timed=not self._order.plan.effort.untimed),
        )

    def _take_in(self) -> None:
        for errand, ended in self._opened.ended(_LOOK_S):
            if isinstance(ended, Failure):
                for scenario in errand.scenarios:
                    self._fail(scenario, ended)
            else:
                self._keep(ended)

    def _keep(self, report: Report) -> None:
        for outcome in report.outcomes:
            scenario = outcome.record.scenario
            self._records[scenario], self._rows[scenario] = outcome.record, outcome.row
            if outcome.trace:
                self._traces[scenario] = outcome.trace
            if outcome.resumed:
                self.resumed.append(scenario)
        self._unstored |= report.unstored
        self._notes |= dict.fromkeys(report.notes)

    def _fail(self, scenario: Scenario, failure: Failure) -> None:
        """Store the row of a scenario of which no machine reported."""
        record = failed(self._cases.of(scenario), failure)
        self._store.take_numbers({(scenario.id, scenario.repeat): self._numbers[scenario.id, scenario.repeat]})
        checks = checks_the_instrument(scenario)
        try:
            self._store.append(record, instrument_check=checks)
        except StoreError as error:
            self._unstored[scenario] = str(error)
        else:
            self._records[scenario], self._rows[scenario] = record, self._store.row(record, instrument_check=checks)


def _numbered(scenarios: Sequence[Scenario], stored: Mapping[Key, int]) -> dict[Key, int]:
    """The numbers of all files of a run, known before anything is measured.

    A run that is resumed with the same scenarios gives each its first number again, stored or not: a job that outlived the
    first driver, in Slurm's queue say, then writes the files that it would have written anyway.
    """
    numbers, taken = dict(stored), set(stored.values())
    for place, scenario in enumerate(scenarios):
        key = (scenario.id, scenario.repeat)
        if key not in numbers:
            numbers[key] = place if place not in taken else 1 + max(len(scenarios), *taken)
            taken.add(numbers[key])
    return numbers
