"""From planned scenarios to records: references first, one job per variant, every row flushed as it is known."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from quantbench.core import cache
from quantbench.core.checksums import of_run, said
from quantbench.core.errors import QuantbenchError, StoreError, UnsupportedError
from quantbench.core.job import REFERENCE_FOLDER, Checkpoint, Job, JobKind, Task
from quantbench.core.record import Record, Status
from quantbench.core.scenario import Scenario
from quantbench.core.scratch import held, scratch_folder
from quantbench.core.trace import NO_REFERENCE, Trace
from quantbench.measuring.passes.other_work import this_process
from quantbench.measuring.subjects.probe import probed
from quantbench.methods import METHODS
from quantbench.models import MODELS
from quantbench.models.checkpoint import resolve
from quantbench.planning import prompts
from quantbench.planning.plan import Plan
from quantbench.planning.preflight import Preflight
from quantbench.results.resume import Earlier
from quantbench.results.store import Store
from quantbench.running.engines import ENGINES, Failure, OpenEngine, collected_trace
from quantbench.running.progress import JobKey, Progress
from quantbench.running.recorder import Recorder, reference_identity
from quantbench.running.steadiness import unsteady

_NO_LOGITS = "a server gives no logits of a whole vocabulary, so that no text can be scored; name a prompt set such as 'mixed'"
_NO_LENGTHS = "a server is sent texts, each by itself; name a prompt set such as 'mixed', and --concurrency for several at once"


class Runner:
    """Measures scenarios on demand: asking for one runs its whole job, and the others of that job are answered from it.

    Use as a context manager.
    """

    def __init__(self, plan: Plan, store: Store, earlier: Earlier | None = None, progress: Progress | None = None) -> None:
        """Nothing is started before the first scenario is asked for; what ``earlier`` has finished is not measured again."""
        self._plan = plan
        self._store = store
        self._earlier = earlier
        self._progress = progress or Progress()
        self._stack = ExitStack()
        self._records: dict[Scenario, Record] = {}
        self._traces: dict[Scenario, Trace] = {}
        self.resumed: list[Scenario] = []
        """What was not measured again."""
        self.notes: Sequence[str] = ()
        """What was told while the run went on, such as an entry of the cache that was made again; known at its end."""
        self._unstored: dict[Scenario, StoreError] = {}
        self._attempts: Counter[Scenario] = Counter()
        self._took_s: dict[JobKey, float] = {}
        self._jobs: dict[JobKey, list[Scenario]] = {}
        for scenario in plan.scenarios:
            self._jobs.setdefault(scenario.job, []).append(scenario)
        self._checkpoints: dict[str, Checkpoint | QuantbenchError] = {}
        self._references: dict[Scenario, Path | str] = {}
        self._preflight = Preflight()
        self._recorder = Recorder(self._preflight)
        self._job_count = 0
        self._opened: OpenEngine | None = None

    def __enter__(self) -> Self:
        """Nothing is started yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the engine and remove the scratch folder."""
        if "_scratch" in vars(self):
            self.notes = said(self._scratch)
        self._stack.close()

    @property
    def records(self) -> Sequence[Record]:
        """All records so far, in the order they were made."""
        return tuple(self._records.values())

    def measure(self, scenario: Scenario) -> Record:
        """The record of a planned scenario; its rows are stored before this returns."""
        if scenario in self._unstored:
            raise self._unstored[scenario]
        if scenario not in self._records:
            rest = self._unfinished(self._jobs[scenario.job])
            if rest:
                started = time.monotonic()
                with self._progress.job(rest):
                    for record in self._run_job(rest):
                        self._keep(record)
                self._took_s[scenario.job] = time.monotonic() - started
        if scenario in self._unstored:
            raise self._unstored[scenario]
        return self._records[scenario]

    def disturbed(self) -> Sequence[Sequence[Scenario]]:
        """What other work disturbed, by job, in the order it was measured."""
        self._judge()
        found: dict[JobKey, list[Scenario]] = {}
        for scenario, record in self._records.items():
            if record.values.get("disturbed") is True:
                found.setdefault(scenario.job, []).append(scenario)
        return list(found.values())

    def took_s(self, group: Sequence[Scenario]) -> float:
        """Seconds that the job of these scenarios took when it was first measured; 0 where a run before this one did it."""
        return self._took_s.get(group[0].job, 0.0)

    def measure_again(self, group: Sequence[Scenario]) -> None:
        """Measure scenarios of one job once more; their rows are replaced, but where this fails, for what is known stays."""
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
        """Mark what only the whole run shows to be disturbed."""
        for scenario, why in unsteady(self.records).items():
            record = self._records[scenario]
            self._store_row(replace(record, values={**record.values, "disturbed": True, "disturbance": why}))

    def _unfinished(self, group: Sequence[Scenario]) -> Sequence[Scenario]:
        """What of a job is to be measured: not what the run that is resumed has finished with equal content."""
        earlier = self._earlier
        if earlier is None or not any(map(earlier.finished, group)):
            return group
        try:
            checkpoint = self._checkpoint(group[0].model)
        except QuantbenchError:
            return group
        for scenario in group:
            if found := earlier.find(scenario, self._recorder.key(scenario, checkpoint)):
                self._records[scenario], self._traces[scenario] = found
                self.resumed.append(scenario)
        return [scenario for scenario in group if scenario not in self._records]

    def _keep(self, record: Record) -> None:
        """Flush the record's rows, and say so."""
        self._store_row(replace(record, attempts=max(1, self._attempts[record.scenario])))
        self._progress.ended(record)

    def _store_row(self, record: Record) -> None:
        """What cannot be stored is an error of its own test, not of its siblings'."""
        builtin = record.scenario.model in MODELS and MODELS[record.scenario.model].instrument_check
        try:
            self._store.append(record, instrument_check=builtin)
        except StoreError as error:
            self._unstored[record.scenario] = error
        else:
            self._records[record.scenario] = record

    def trace(self, scenario: Scenario) -> Trace | None:
        """What the worker saw, for a scenario that was measured well."""
        return self._traces.get(scenario)

    @cached_property
    def _scratch(self) -> Path:
        """The run's own folder: runs that keep their jobs in one place do not share it, nor does one with its resumption."""
        if not self._plan.keep_jobs:
            return self._stack.enter_context(scratch_folder())
        for number in count(1):
            folder = self._plan.keep_jobs / (self._store.run_id if number == 1 else f"{self._store.run_id}-{number}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            self._stack.enter_context(held(folder))
            return folder
        raise AssertionError

    def _engine(self) -> OpenEngine:
        if self._opened is None:
            device = self._plan.scenarios[0].conditions.device
            self._opened = self._stack.enter_context(ENGINES[self._plan.engine].open(device))
        return self._opened

    def _run_job(self, group: Sequence[Scenario]) -> Iterator[Record]:
        """Records as they are known, so that what is done is kept whatever happens to the rest."""
        ready: list[tuple[Scenario, Task]] = []
        self._attempts.update(group)
        for scenario in group:
            found, checkpoint = self._task(scenario)
            if isinstance(found, Task):
                ready.append((scenario, found))
            else:
                yield self._recorder.failed(scenario, found, checkpoint)
        comparable = all(task.reference for _, task in ready)  # else the worker reads the prompts, and one may not fit
        usual = [each for each in ready if not each[1].alone]
        others = [[each] for each in ready if each[1].alone]
        for together in [usual, *others] if comparable else [[each] for each in ready]:
            if together:
                yield from self._measure_ready(together, self._checkpoint(together[0][0].model))

    def _require_room(self, scenario: Scenario, checkpoint: Checkpoint | None = None) -> None:
        """Raise UnsupportedError, with the arithmetic, for what cannot fit here; nothing was made or loaded yet."""
        if refusal := self._preflight.outlook(scenario, checkpoint).refusal:
            smaller = "precision" if scenario.batch == 1 else "precision or batch"
            raise UnsupportedError(f"{refusal}; choose a smaller {smaller}, or run where there is more memory")

    def _measure_ready(self, ready: Sequence[tuple[Scenario, Task]], checkpoint: Checkpoint) -> list[Record]:
        first = ready[0][0]
        tasks = [task for _, task in ready]
        if METHODS[first.variant.method].preparer:
            _, failure = self._work("prepare", first, checkpoint, tasks)
            if failure:
                return [self._recorder.failed(scenario, failure, checkpoint) for scenario, _ in ready]
        probes = None
        if self._plan.probes:
            probes = probed(first, checkpoint, lambda: self._work("probe", first, checkpoint, tasks))
        try:
            folder, failure = self._work("measure", first, checkpoint, tasks, probes=probes)
        except BaseException:  # Ctrl-C: what the worker had finished is kept
            folder = self._scratch / f"{self._job_count - 1:03d}-{first.variant.label}-measure"
            for index, (scenario, task) in enumerate(ready):
                if trace := collected_trace(folder, index):
                    self._keep(self._recorder.measured(scenario, trace, task, checkpoint))
            raise
        records = []
        for index, (scenario, task) in enumerate(ready):
            trace = collected_trace(folder, index)
            if trace:
                self._traces[scenario] = trace
                records.append(self._recorder.measured(scenario, trace, task, checkpoint))
            else:
                unknown = Failure(status=Status.ERROR, reason="the worker left no trace of this prompt set")
                records.append(self._recorder.failed(scenario, failure or unknown, checkpoint))
        return records

    def _task(self, scenario: Scenario) -> tuple[Task | Failure, Checkpoint | None]:
        """What a worker is to do, or why it cannot be; with the checkpoint, where that is there."""
        checkpoint = None
        try:
            self._require_room(scenario)
            checkpoint = self._checkpoint(scenario.model)
            method = METHODS[scenario.variant.method]
            method.check(checkpoint)
            self._require_room(scenario, checkpoint)
            task = _asked(scenario.prompts)
            if method.endpoint and task.alone:
                raise UnsupportedError(_NO_LOGITS if task.is_text else _NO_LENGTHS)
        except QuantbenchError as error:
            status = Status.SKIPPED if isinstance(error, UnsupportedError) else Status.ERROR
            return Failure(status=status, reason=str(error)), checkpoint
        reference = self._reference(scenario, checkpoint)
        found = {"no_reference": reference} if isinstance(reference, str) else {"reference": reference}
        return replace(task, **found), checkpoint

    def _reference(self, scenario: Scenario, checkpoint: Checkpoint) -> Path | str:
        """The folder of the reference's artifact; or why there is none, which costs similarity and nothing else."""
        wanted = scenario.reference()
        if wanted not in self._references:
            self._references[wanted] = self._make_reference(wanted, checkpoint)
        return self._references[wanted]

    def _make_reference(self, wanted: Scenario, checkpoint: Checkpoint) -> Path | str:
        if checkpoint.kind not in ("hf", "gguf") or checkpoint.random_weights:
            return NO_REFERENCE
        try:
            METHODS[wanted.variant.method].check(checkpoint)
        except UnsupportedError:
            return NO_REFERENCE
        except QuantbenchError as error:
            return f"the reference {wanted.variant.name} could not be made: {error}"
        if refusal := self._preflight.outlook(wanted, checkpoint).refusal:
            return f"the reference does not fit: {refusal}; name a smaller one with --reference, such as torch/bf16"

        def make(folder: Path) -> None:
            task = _asked(wanted.prompts)
            if METHODS[wanted.variant.method].preparer:
                self._work("prepare", wanted, checkpoint, [task])
            _, failure = self._work("reference", wanted, checkpoint, [task], into=folder)
            if failure:
                hint = "; --timeout gives it more time, and --profile quick makes a smaller one"
                raise QuantbenchError(failure.reason + hint * (failure.status is Status.TIMEOUT))

        try:
            with of_run(self._scratch):
                return cache.artifact("reference", reference_identity(wanted, checkpoint), make)
        except (QuantbenchError, OSError) as error:
            return f"the reference {wanted.variant.name} could not be made: {error}"

    def _work(
        self,
        kind: JobKind,
        first: Scenario,
        checkpoint: Checkpoint,
        tasks: Sequence[Task],
        *,
        probes: Path | None = None,
        into: Path | None = None,
    ) -> tuple[Path, Failure | None]:
        """Run one job; the reference that it makes goes right ``into`` its place, which may be on another disk.

        An engine that breaks costs this job; the next one gets a new engine.
        """
        folder = self._scratch / f"{self._job_count:03d}-{first.variant.label}-{kind}"
        self._job_count += 1
        try:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier run that kept its jobs here
            folder.mkdir()
            if into:
                (folder / REFERENCE_FOLDER.format(0)).symlink_to(into)
            self._progress.working(kind, folder)
            engine = self._engine()
            job = Job(
                kind=kind,
                checkpoint=checkpoint,
                variant=first.variant,
                conditions=first.conditions,
                effort=self._plan.effort,
                tasks=tuple(tasks),
                probes=probes,
                root=this_process(),
            )
            replace(job, preloaded=dict(engine.preloaded(job))).save(folder)
            return folder, engine.run(folder, self._plan.effort.timeout_s)
        except (QuantbenchError, OSError) as error:
            self._opened = None
            return folder, Failure(status=Status.CRASHED, reason=str(error))

    def _checkpoint(self, name: str) -> Checkpoint:
        if name not in self._checkpoints:
            try:
                self._checkpoints[name] = resolve(name, trust_remote_code=self._plan.trust_remote_code)
            except QuantbenchError as error:
                self._checkpoints[name] = error
        found = self._checkpoints[name]
        if isinstance(found, QuantbenchError):
            raise found
        return found


def _asked(name: str) -> Task:
    """What a prompt set asks of a worker."""
    chosen = prompts.load(name)
    return Task(
        prompts_name=name, prompts=chosen.prompts, reference=None, is_text=chosen.is_text, tokens=chosen.tokens,
        batch=chosen.batch,
    )  # fmt: skip
