"""The fixture ``quantbench``: a test that is parametrized over scenarios gets one, measured, and its durations replayed."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.errors import QuantbenchError
from quantbench.suite.replay import ReplayClock, benchmark_group, extra_info

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Sequence

    from quantbench.core.record import Record
    from quantbench.core.scenario import Scenario
    from quantbench.core.trace import Trace
    from quantbench.running.session import Session

PARAMETER = "quantbench_scenario"
_QUIET = pytest.mark.filterwarnings("ignore:Benchmark fixture was not used at all")  # as it is when a scenario failed
_CLOCK = pytest.StashKey[ReplayClock]()
_ASKS_FOR_ITS_TABLE = tuple(
    f"--benchmark-{name}"
    for name in ("sort", "group-by", "columns", "name", "time-unit", "histogram", "compare", "verbose", "cprofile")
)
"""Options of pytest-benchmark that are about its table of results; some are beginnings of several."""


class Measured:
    """The ``quantbench`` fixture: one scenario's record, and its durations for pytest-benchmark."""

    def __init__(self, session: Session, scenario: Scenario, clock: ReplayClock, benchmark: Any) -> None:
        """``benchmark`` is pytest-benchmark's fixture, or None without that plugin."""
        self._session = session
        self._clock = clock
        self._benchmark = benchmark
        self._seconds: Callable[[Trace], Sequence[float]] | None = None
        self.scenario = scenario

    @property
    def record(self) -> Record:
        """The scenario's record, measured now if it was not yet; skips or fails the test unless its status is ok."""
        __tracebackhide__ = True
        try:
            record = self._session.runner.measure(self.scenario)
        except QuantbenchError as error:
            pytest.fail(str(error), pytrace=False)
        if record.status == "skipped":
            pytest.skip(record.reason)
        if record.status != "ok":
            pytest.fail(f"{record.status}: {record.reason}", pytrace=False)
        return record

    @property
    def trace(self) -> Trace:
        """The worker's trace of the scenario; skips or fails the test like ``record``."""
        __tracebackhide__ = True
        trace = self._session.runner.trace(self.record.scenario)
        assert trace is not None
        return trace

    def replay(self, seconds: Callable[[Trace], Sequence[float]]) -> None:
        """Hand the worker's durations to pytest-benchmark, with the record's figures as ``extra_info``.

        ``seconds`` takes them from the trace; it is called again if the scenario is measured again.
        """
        samples = seconds(self.trace)
        if not samples:
            pytest.skip(self._session.untimed or "nothing was timed")
        if self._benchmark is None:
            return
        self._seconds = seconds
        self._describe()
        self._clock.load(samples)
        self._benchmark.pedantic(self._clock.advance, rounds=len(samples), iterations=1, warmup_rounds=0)

    def renew(self) -> None:
        """Replace the replayed figures, if there are any, with those of the scenario's newest record."""
        benched = None if self._benchmark is None else self._benchmark.stats
        if benched is None or self._seconds is None:  # also with --benchmark-disable
            return
        self._describe()
        fresh = type(benched.stats)()
        for sample in self._seconds(self.trace):
            fresh.update(sample)
        benched.stats = fresh

    def _describe(self) -> None:
        self._benchmark.extra_info.clear()
        self._benchmark.extra_info.update(extra_info(self.record))


class ScenarioTests:
    """The scenarios' tests of one pytest: their clocks and groups, and what they handed to pytest-benchmark."""

    def __init__(self, config: pytest.Config, session_of: Callable[[pytest.Config], Session]) -> None:
        """``session_of`` gives the session, planned by then."""
        self._config = config
        self._session_of = session_of
        self._measured: list[Measured] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Drop what pytest collects, as skipped, for a test without any scenario."""
        items[:] = [item for item in items if not _has_no_scenario(item)]
        for item in items:
            if scenario_of(item):
                item.add_marker(_QUIET)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Give a scenario's test its clock and its group before pytest-benchmark looks at them."""
        if identifier := scenario_of(item):
            clock = item.stash[_CLOCK] = ReplayClock()
            scenario = self._session_of(self._config).planned[identifier]
            group = benchmark_group(scenario, getattr(item, "originalname", item.name))
            item.add_marker(pytest.mark.benchmark(group=group, timer=clock), append=False)

    def renew(self, scenarios: Collection[Scenario]) -> None:
        """Replace what was handed to pytest-benchmark for scenarios that were measured again since."""
        for measured in self._measured:
            if measured.scenario in scenarios:
                measured.renew()

    def measure(self, request: pytest.FixtureRequest, identifier: str, benchmark: Any) -> Measured:
        """What the fixture gives to the test that asks."""
        session = self._session_of(self._config)
        measured = Measured(session, session.planned[identifier], request.node.stash[_CLOCK], benchmark)
        self._measured.append(measured)
        return measured


class WithBenchmark(ScenarioTests):
    """Where pytest-benchmark is active: durations are replayed through its fixture."""

    @pytest.hookimpl(wrapper=True)
    def pytest_benchmark_group_stats(self, config: pytest.Config) -> Generator[None, Any, Any]:
        """Scenarios stand in the summary, so pytest-benchmark's own table has them only where one of its options asks.

        Other benchmarks of the session stay in it, and its files hold everything in any case.
        """
        found = yield
        if _asks_for_benchmark_table(config):
            return found
        kept = ((name, [bench for bench in benches if PARAMETER not in (bench["params"] or {})]) for name, benches in found)
        return [(name, benches) for name, benches in kept if benches]

    @pytest.fixture
    def quantbench(self, request: pytest.FixtureRequest, quantbench_scenario: str, benchmark: Any) -> Measured:
        """One scenario's measurement."""
        return self.measure(request, quantbench_scenario, benchmark)


class WithoutBenchmark(ScenarioTests):
    """Where it is not: scenarios are measured all the same."""

    @pytest.fixture
    def quantbench(self, request: pytest.FixtureRequest, quantbench_scenario: str) -> Measured:
        """One scenario's measurement."""
        return self.measure(request, quantbench_scenario, None)


def scenario_of(item: pytest.Item) -> str | None:
    """The id of the scenario that a test measures, or None for any other test."""
    callspec = getattr(item, "callspec", None)
    found = callspec.params.get(PARAMETER) if callspec is not None else None
    return found if isinstance(found, str) else None


def _has_no_scenario(item: pytest.Item) -> bool:
    """Whether it is that placeholder."""
    callspec = getattr(item, "callspec", None)
    return callspec is not None and PARAMETER in callspec.params and scenario_of(item) is None


def _asks_for_benchmark_table(config: pytest.Config) -> bool:
    """Whether an option about that table was given: on the command line, in the ini file's addopts, or in PYTEST_ADDOPTS."""
    given = [*config.invocation_params.args, *config.getini("addopts"), *shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))]
    return any(str(argument).startswith(_ASKS_FOR_ITS_TABLE) for argument in given)
