"""One session: plans, measures and stores, from option values to an open runner and the run's own row."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from quantbench.core.ending import like_ctrl_c
from quantbench.core.errors import QuantbenchError, UsageError, unknown_name
from quantbench.planning.options import Plan, RunOptions, plan, single
from quantbench.running.engines import ENGINES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from quantbench.core.record import Record
    from quantbench.core.scenario import Scenario
    from quantbench.results.resume import Earlier
    from quantbench.results.store import Run, Store
    from quantbench.running.fleet import FleetRunner
    from quantbench.running.progress import Progress
    from quantbench.running.runner import Runner

_UNTIMED = "nothing was timed: --untimed was asked for"


class Session:
    """Plans and measures for one pytest session."""

    def __init__(self, options: RunOptions, *, command: str, root: Path, untimed: str = "") -> None:
        """Plan what the options ask for; UsageError when they ask for something that does not exist.

        ``untimed`` says why nothing may be timed in this process; empty where timings are wanted.
        """
        if options.engine not in ENGINES:
            raise unknown_name("engine", options.engine, (engine.name for engine in ENGINES))
        with like_ctrl_c():
            planned = plan(options)
        self.options = options
        self.untimed = untimed or _UNTIMED * options.untimed
        self._plan = replace(planned, effort=replace(planned.effort, untimed=self.untimed))
        self._elsewhere = ENGINES[options.engine].fleet is not None
        self._profile: str = options.profile
        self._resume: str | None = options.resume
        self.baseline: str | None = options.compare
        """What the run is to be compared with at its end, if anything."""
        self.fail_on: str = options.fail_on
        self._command = command
        self._root = root
        self._stack = ExitStack()
        self._runner: Runner | FleetRunner | None = None
        self._store: Store | None = None
        self._earlier: Earlier | None = None
        self._rows: set[tuple[str, int]] = set()
        self.results: str = options.results
        self.planned: dict[str, Scenario] = {scenario.test_id: scenario for scenario in self._plan.scenarios}
        self.selected: Sequence[Scenario] = ()
        """The planned scenarios that were selected when the session started."""
        self.asked: dict[str, Scenario] = {}
        """Scenarios asked for one by one, with ``ask``, by id."""
        self.run_id = ""
        self._problem = ""
        self._swept: Sequence[str] = ()
        self.nothing = ""
        """A sentence about a run that tried to measure something and measured nothing; empty for any other run."""
        self.announced: list[str] = []
        """Lines to print before anything is measured."""
        self._progress_of_run: Progress | None = None
        self._pace: tuple[str, float] | None = None
        self._began = 0.0
        self._again: Sequence[str] = ()

    def start(self, selected: Sequence[str], *, verbosity: int | None) -> None:
        """Open the store and the runner for the selected scenarios; progress is shown unless ``verbosity`` is None.

        Call it while nothing is captured.
        """
        from quantbench.core.cache import cache_root
        from quantbench.core.gpus import number_gpus_by_bus
        from quantbench.core.scratch import sweep
        from quantbench.results.resume import hold
        from quantbench.results.store import Store

        self._began = time.monotonic()
        self.selected = chosen = tuple(self.planned[identifier] for identifier in selected)
        if not self._elsewhere:
            _require_devices(chosen)
            self.announced += _busy_already()
        number_gpus_by_bus()
        self._swept = sweep(cache_root()).sentences
        with ExitStack() as stack:  # nothing stays open if one of these fails
            stack.enter_context(like_ctrl_c())
            run = self._run(stack)
            earlier = self._earlier
            self._store = Store(self.results, run, earlier.numbers if earlier else None)
            self._rows = {(scenario.id, scenario.repeat) for scenario in chosen} | set(earlier.rows if earlier else ())
            self._store.begin(planned=self._planned)
            # ``earlier`` holds a lock on a resumed run, but on the file that ``begin`` has just replaced; this lock is on the
            # new file. Between the two only a moment remains in which another process could take it.
            if held := hold(self.results, run):
                stack.enter_context(held)
            progress = self._progress(chosen, verbosity)
            stack.callback(progress.close)
            self._progress_of_run = progress
            runner = self._open(replace(self._plan, scenarios=chosen), self._store, progress)
            stack.enter_context(runner)
            self._runner = runner
            self.run_id = run.run_id
            self._stack = stack.pop_all()

    def _open(self, plan: Plan, store: Store, progress: Progress) -> Runner | FleetRunner:
        """What measures the plan, here or on the machines of a fleet."""
        if not self._elsewhere:
            from quantbench.running.runner import Runner

            return Runner(plan, store, self._earlier, progress)
        from pathlib import Path

        from quantbench.running.errand import Order
        from quantbench.running.fleet import FleetRunner

        here = Path.cwd()
        results = self.results if "://" in self.results else str(here / Path(self.results).expanduser())
        order = Order(run=store.run, plan=plan, results=results, folder=here)
        return FleetRunner(order, store, self._earlier.numbers if self._earlier else {}, progress)

    @property
    def _planned(self) -> int:
        """How many rows the run is to have."""
        return max(len(self._rows), self._earlier.planned if self._earlier else 0)

    def ask(self, model: str, variant: str, prompts: str, settings: RunOptions) -> Scenario:
        """Plan one more scenario of the open session; ``settings`` are the session's own, but for some OF_A_SCENARIO.

        UsageError for what does not exist, and for a scenario that the run already holds under other conditions.
        """
        scenario = single(settings, model, variant, prompts)
        known = {each.id: each for each in self.selected if not each.repeat} | self.asked
        other = known.get(scenario.id, scenario)
        if other != scenario:
            raise UsageError(
                f"{scenario.id} is measured in this run under other conditions ({_difference(other, scenario)}), and a run has "
                "one row for each id; ask for the same conditions, or measure it in a run of its own"
            )
        if not self._elsewhere:
            _require_devices((scenario,))
        self.asked[scenario.id] = scenario
        self._rows.add((scenario.id, scenario.repeat))
        self.runner.add(scenario, probed=self.options.probes)
        return scenario

    def steady(self, scenario: Scenario) -> Record:
        """The record of a scenario, measured again, at most twice, where other work disturbed it and the machine is quiet."""
        from quantbench.running.again import QUIET_WITHIN_S, TIMES, Only, measure_again

        budget_s = TIMES * (self.runner.took_s((scenario,)) + QUIET_WITHIN_S)
        measure_again(Only(self.runner, (scenario,)), budget_s=budget_s)
        return self.runner.measure(scenario)

    @property
    def runner(self) -> Runner | FleetRunner:
        """The open runner."""
        assert self._runner is not None
        return self._runner

    @property
    def records(self) -> Sequence[Record]:
        """All records so far, including those of the run that is resumed."""
        return self._runner.records if self._runner else ()

    @property
    def notes(self) -> Sequence[str]:
        """Lines to print after the results."""
        notes = [each for each in (self._problem, self.nothing) if each]
        if self._earlier and self._runner:
            count = len(self._runner.resumed)
            notes.append(f"resumed: {count} of the {self._planned} scenarios of this run had been measured before")
        return [*notes, *self._again, *self._swept, *(self._runner.notes if self._runner else ())]

    def measure_again(self) -> Sequence[Scenario]:
        """Measure again what of the selected scenarios other work disturbed; returns the scenarios measured again."""
        from quantbench.running.again import SHARE, Only, measure_again

        if self._runner is None:
            return ()
        done = measure_again(Only(self._runner, self.selected), budget_s=SHARE * (time.monotonic() - self._began))
        self._again = tuple(done.sentences)
        return done.scenarios

    def finish(self, *, interrupted: bool) -> None:
        """Close the engine and write the run's row."""
        if self._runner is None or self._store is None:
            return
        statuses = {key: kept.status for key, kept in self._earlier.rows.items()} if self._earlier else {}
        statuses |= {(record.scenario.id, record.repeat): record.status for record in self.records}
        ok = sum(status == "ok" for status in statuses.values())
        if self.selected and self.records and not ok and not interrupted:
            self.nothing = _nothing_measured(self.records)
        if self._pace and self._progress_of_run and self._progress_of_run.pace:
            from quantbench.running.estimate import remember_pace

            remember_pace(*self._pace, self._progress_of_run.pace)
        with self._stack:
            try:
                self._store.finish(planned=self._planned, finished=len(statuses), ok=ok, interrupted=interrupted)
            except QuantbenchError as error:
                self._problem = str(error)

    def _run(self, stack: ExitStack) -> Run:
        """A new run, or the one that is resumed, cleared of unfinished files."""
        from quantbench.core.machine import describe, git_commit
        from quantbench.planning.packages import installed
        from quantbench.results.resume import resume
        from quantbench.results.store import Run

        run = Run(
            machine=describe(), versions=installed(), command=self._command, commit=git_commit(self._root),
            profile=self._profile, engine=self._plan.engine,
        )  # fmt: skip
        if not self._resume:
            return run
        self._earlier = stack.enter_context(resume(self.results, self._resume, run))
        self._earlier.clear()
        return self._earlier.run

    def _progress(self, chosen: Sequence[Scenario], verbosity: int | None) -> Progress:
        from quantbench.running import estimate
        from quantbench.running.display import open_display
        from quantbench.running.progress import Progress

        earlier = self._earlier
        rest = [scenario for scenario in chosen if earlier is None or not earlier.finished(scenario)]
        expected = {}
        if rest and verbosity is not None and not self._elsewhere:  # what other machines will take is not known here
            conditions = rest[0].conditions
            machine, origin = estimate.this_machine(conditions.device, conditions.threads)
            expected = estimate.expected(rest, self._plan.effort, machine)
            self.announced += estimate.announced(rest, expected, self._plan.effort.timeout_s, origin)
            self._pace = conditions.device, machine.pace
        self.announced += [f"quantbench: {sentence}" for sentence in self._plan.hints]
        if self._plan.left_out:
            self.announced.append(f"quantbench: left out unless named: {'; '.join(self._plan.left_out)}")
        display = None if verbosity is None else open_display(quiet=verbosity < 0)
        jobs = {scenario.job for scenario in rest}
        return Progress(display, jobs=len(jobs), polls=self._plan.engine != "inline", expected=expected)


def _difference(one: Scenario, other: Scenario) -> str:
    """What two scenarios of one id have not in common, in words."""
    before, now = ({"model": each.model, "prompts": each.prompts, **asdict(each.conditions)} for each in (one, other))
    return ", ".join(f"{name} {before[name]!r}, not {now[name]!r}" for name in before if before[name] != now[name])


def _nothing_measured(records: Sequence[Record]) -> str:
    """One sentence about a run without any figure: how its scenarios ended, and the most frequent reason."""
    ended = Counter(str(record.status) for record in records)
    reasons = Counter(record.reason for record in records if record.reason)
    counted = ", ".join(f"{count} {status}" for status, count in ended.most_common())
    why = f"; most frequent reason: {reasons.most_common(1)[0][0].splitlines()[0]}" if reasons else ""
    return f"nothing was measured ({counted}){why}"


def _require_devices(chosen: Sequence[Scenario]) -> None:
    """Raise UsageError unless every requested device exists, and torch can use it where it must."""
    from quantbench.core.machine import require_device
    from quantbench.methods import METHODS

    for scenario in {(each.conditions.device, each.variant.method): each for each in chosen}.values():
        methods = (scenario.variant.method, scenario.reference().variant.method)
        needs_torch = any("torch" in METHODS[name].requires for name in methods if name)
        require_device(scenario.conditions.device, torch=needs_torch)


def _busy_already() -> list[str]:
    """A sentence where other processes keep this machine busy before anything is measured; none where it is quiet."""
    from quantbench.core.other_work import busy_now

    found = busy_now()
    return [f"quantbench: the machine is already busy: {found}; speeds measured meanwhile are marked"] if found else []
