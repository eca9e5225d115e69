"""From planned scenarios to records: references first, one job per variant, every row flushed as soon as it is known."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from quantbench.core.errors import StoreError
from quantbench.core.job import Failure, Task
from quantbench.core.record import Record, Status
from quantbench.core.scenario import JobKey, Scenario
from quantbench.core.trace import Trace
from quantbench.measuring.subjects.probe import probed
from quantbench.methods import METHODS
from quantbench.models import MODELS
from quantbench.planning.case import Case, Cases
from quantbench.planning.options import Plan
from quantbench.results.resume import Earlier
from quantbench.results.store import Store
from quantbench.running.jobs import Jobs
from quantbench.running.progress import Progress
from quantbench.running.recorder import failed, measured
from quantbench.running.references import References
from quantbench.running.steadiness import unsteady


class Runner:
    """Measures scenarios on demand: asking for one runs its whole job, which also yields the records of the others.

    Use as a context manager.
    """

    def __init__(self, plan: Plan, store: Store, earlier: Earlier | None = None, progress: Progress | None = None) -> None:
        """Nothing is started before the first scenario is requested; what ``earlier`` has finished is not measured again."""
        self._plan = plan
        self._store = store
        self._earlier = earlier
        self._progress = progress or Progress()
        self._records: dict[Scenario, Record] = {}
        self._traces: dict[Scenario, Trace] = {}
        self.resumed: list[Scenario] = []
        """Scenarios taken from the run that is resumed, not measured again."""
        self._unstored: dict[Scenario, StoreError] = {}
        self._attempts: Counter[Scenario] = Counter()
        self._took_s: dict[JobKey, float] = {}
        self._jobs: dict[JobKey, list[Scenario]] = {}
        self._added: dict[Scenario, bool] = {}
        """Whether scenarios that were added later are probed."""
        self._anchored: set[tuple[str, str]] = set()
        """Contents of models, and anchors that were prepared for files published of them."""
        for scenario in plan.scenarios:
            self._jobs.setdefault(scenario.job, []).append(scenario)
        self._cases = Cases(trust_remote_code=plan.trust_remote_code)
        self._work = Jobs(plan, store.run_id, self._progress)
        self._references = References(self._work, self._cases.of)

    def __enter__(self) -> Self:
        """Nothing is started yet."""
        self._work.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the engine and remove the scratch folder."""
        self._work.__exit__(kind, error, trace)

    @property
    def notes(self) -> Sequence[str]:
        """What workers have reported so far."""
        return self._work.notes

    @property
    def records(self) -> Sequence[Record]:
        """All records so far, in the order they were made."""
        return tuple(self._records.values())

    def measure(self, scenario: Scenario) -> Record:
        """The record of a planned scenario; its rows are stored before this returns."""
        if scenario in self._unstored:
            raise self._unstored[scenario]
        if scenario not in self._records:
            rest = self._unfinished([each for each in self._jobs[scenario.job] if not self._settled(each)])
            if rest:
                started = time.monotonic()
                with self._progress.job(rest):
                    for record in self._run_job(rest):
                        self._keep(record)
                self._took_s[scenario.job] = time.monotonic() - started
        if scenario in self._unstored:
            raise self._unstored[scenario]
        return self._records[scenario]

    def add(self, scenario: Scenario, *, probed: bool) -> None:
        """Plan one more scenario, its variant to be ``probed`` or not."""
        group = self._jobs.setdefault(scenario.job, [])
        if scenario not in group:
            group.append(scenario)
            self._added[scenario] = probed

    def row(self, record: Record) -> Mapping[str, Any]:
        """The record's row of ``scenarios``, as stored."""
        return self._store.row(record, instrument_check=checks_the_instrument(record.scenario))

    def _settled(self, scenario: Scenario) -> bool:
        """Whether there is a record, or one that could not be stored."""
        return scenario in self._records or scenario in self._unstored

    def disturbed(self) -> Sequence[Sequence[Scenario]]:
        """The scenarios that other work disturbed, by job, in the order they were measured."""
        self._judge()
        found: dict[JobKey, list[Scenario]] = {}
        for scenario, record in self._records.items():
            if record.values.get("disturbed") is True:
                found.setdefault(scenario.job, []).append(scenario)
        return list(found.values())

    def took_s(self, group: Sequence[Scenario]) -> float:
        """Seconds that the job of these scenarios took when first measured; 0 where an earlier run measured it."""
        return self._took_s.get(group[0].job, 0.0)

    def measure_again(self, group: Sequence[Scenario]) -> None:
        """Measure scenarios of one job once more. Their rows are replaced; where it fails, the earlier ones stay."""
        before = {scenario: (self._records[scenario], self._traces[scenario]) for scenario in group}
        for scenario, (record, _) in before.items():
            self._attempts[scenario] = record.attempts
        with self._progress.job(group, again=True):
            for record in self._run_job(group):
                if record.status is Status.OK:
                    self._keep(record)
                else:
                    kept, self._traces[record.scenario] = before[record.scenario]
                    self._keep(kept)

    def _judge(self) -> None:
        """Mark rows that only the run as a whole shows to be disturbed."""
        for scenario, why in unsteady(self.records).items():
            record = self._records[scenario]
            self._store_row(replace(record, values={**record.values, "disturbed": True, "disturbance": why}))

    def _unfinished(self, group: Sequence[Scenario]) -> Sequence[Scenario]:
        """The part of a job still to be measured: all but what the resumed run has finished with the same content."""
        earlier = self._earlier
        if earlier is None or not any(map(earlier.finished, group)):
            return group
        for scenario in group:
            if found := earlier.find(self._cases.of(scenario)):
                self._records[scenario], self._traces[scenario] = found
                self.resumed.append(scenario)
        return [scenario for scenario in group if scenario not in self._records]

    def _keep(self, record: Record) -> None:
        """Flush the record's rows, and report the progress."""
        self._store_row(replace(record, attempts=max(1, self._attempts[record.scenario])))
        self._progress.ended(record)

    def _store_row(self, record: Record) -> None:
        """Store a record; a failure is an error of its own test, not of its siblings."""
        try:
            self._store.append(record, instrument_check=checks_the_instrument(record.scenario))
        except StoreError as error:
            self._unstored[record.scenario] = error
        else:
            self._records[record.scenario] = record

    def trace(self, scenario: Scenario) -> Trace | None:
        """The worker's trace of a scenario that was measured successfully."""
        return self._traces.get(scenario)

    def _run_job(self, group: Sequence[Scenario]) -> Iterator[Record]:
        """Yield each record as soon as it is known, so that finished ones are kept whatever happens to the rest."""
        ready: list[tuple[Case, Task]] = []
        self._attempts.update(group)
        for scenario in group:
            case = self._cases.of(scenario)
            if case.failure:
                yield failed(case, case.failure)
            else:
                ready.append((case, case.task(self._references.of(case))))
        comparable = all(task.reference for _, task in ready)  # else the worker tokenizes, and one may be too long
        usual = [each for each in ready if not each[1].alone]
        others = [[each] for each in ready if each[1].alone]
        for together in [usual, *others] if comparable else [[each] for each in ready]:
            if together:
                yield from self._measure_ready(together)

    def _measure_ready(self, ready: Sequence[tuple[Case, Task]]) -> Iterator[Record]:
        first, tasks = ready[0][0], [task for _, task in ready]
        if self._needs_preparing(first):
            _, failure = self._work.run("prepare", first, tasks)
            if failure:
                yield from (failed(case, failure) for case, _ in ready)
                return
        probes = None
        if self._added.get(first.scenario, first.scenario.variant.name in self._plan.probed) and first.checkpoint:
            probes = probed(first.spec, first.checkpoint, lambda: self._work.run("probe", first, tasks))
        try:
            _, failure = self._work.run("measure", first, tasks, probes=probes)
        except BaseException:  # such as Ctrl-C: what the worker had finished is kept
            for index, trace in self._work.left_behind(len(ready)).items():
                self._keep(measured(*ready[index], trace))
            raise
        traces = self._work.left_behind(len(ready))
        unknown = Failure(status=Status.ERROR, reason="the worker left no trace of this prompt set")
        for index, (case, task) in enumerate(ready):
            if index in traces:
                self._traces[case.scenario] = traces[index]
                yield measured(case, task, traces[index])
            else:
                yield failed(case, failure or unknown)

    def _needs_preparing(self, case: Case) -> bool:
        """Whether anything is made before measuring: of a published file that is not audited only its anchor, once."""
        method = METHODS[case.variant.method]
        if not method.preparer or self._plan.effort.besides or not (case.original and case.checkpoint):
            return bool(method.preparer)
        anchor = (case.original.content_hash, method.anchor)
        known = anchor in self._anchored and case.checkpoint.kind == "gguf"
        self._anchored.add(anchor)
        return not known


def checks_the_instrument(scenario: Scenario) -> bool:
    """Whether the scenario's model serves only to check the instrument."""
    return scenario.model in MODELS and MODELS[scenario.model].instrument_check
