"""The pytest plugin: options, parametrization, the ``quantbench`` fixture, and the summary. Glue only."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any, Literal

import pytest

from quantbench.core.errors import QuantbenchError, UsageError
from quantbench.own_tests import FIXTURE, OwnTests
from quantbench.planning.options import OPTIONS, Option, RunOptions
from quantbench.running.measure import beside_other_tests
from quantbench.running.session import Session
from quantbench.suite.replay import ReplayClock, benchmark_group, extra_info

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from quantbench.core.record import Record
    from quantbench.core.scenario import Scenario
    from quantbench.core.trace import Trace
    from quantbench.judge.compare.gate import Outcome


_QUIET = pytest.mark.filterwarnings("ignore:Benchmark fixture was not used at all")  # as it is when a scenario failed
PARAMETER = "quantbench_scenario"
_READS = "quantbench_reads"
_PATHS = ("matrix", "results", "keep_jobs", "calibration")
_COMMAND_LINE_ONLY = ("trust_remote_code",)
"""Trust must be given on the command line, never by a file that happens to be there."""
_INI_TYPES: dict[str, Literal["bool", "int", "float"]] = {"flag": "bool", "int": "int", "float": "float"}
"""Of what is no string in a TOML file."""
_OWN = pytest.StashKey[OwnTests]()
_CLOCK = pytest.StashKey[ReplayClock]()
_BAD_INPUT = pytest.StashKey[str]()
FAILED_COMPARISON = pytest.StashKey[str]()
"""The outcome of the comparison, where that alone failed the session: ``regression`` or ``insufficient``."""
_COMPARISON = pytest.StashKey["Outcome | None"]()
_SESSION = pytest.StashKey[Session]()
_REPLAYED = pytest.StashKey[list["Measured"]]()
"""Figures handed to pytest-benchmark, to be replaced where a scenario is measured again."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add every setting as ``--quantbench-NAME``, and all but trust as ini key ``quantbench_name``."""
    group = parser.getgroup("quantbench", "measure quantized models")
    for option in OPTIONS:
        action = {"list": "append", "flag": "store_true"}.get(option.kind, "store")
        extra: dict[str, Any] = {} if option.kind == "flag" else {"metavar": option.metavar}
        group.addoption(
            f"--quantbench-{option.name}",
            dest=f"quantbench_{option.key}",
            action=action,
            default=None,
            help=option.help,
            **extra,
        )
        if option.key in _COMMAND_LINE_ONLY:
            continue
        parser.addini(f"quantbench_{option.key}", option.help, type=_INI_TYPES.get(option.kind, "string"), default="")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and the fixture, and make the folder that ``--benchmark-json`` will be written to."""
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.addinivalue_line("markers", f"{_READS}(what): only scenarios whose model reads that: prompts, text or inputs")
    has_benchmark = config.pluginmanager.hasplugin("benchmark")
    if not has_benchmark:
        config.addinivalue_line("markers", "benchmark: settings of pytest-benchmark, which is not active")
    config.pluginmanager.register(_WithBenchmark() if has_benchmark else _WithoutBenchmark(), "quantbench-fixture")
    config.stash[_OWN] = OwnTests(config, session_of)
    config.pluginmanager.register(config.stash[_OWN], "quantbench-own-tests")
    json_file: Path | None = getattr(config.option, "benchmark_json", None)
    if json_file is not None:
        try:
            json_file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise pytest.UsageError(f"--benchmark-json: {json_file.parent} cannot be created ({error.strerror})") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per planned scenario, with the scenario's id as the test's id; those that ask for a GPU are marked ``gpu``."""
    if PARAMETER in metafunc.fixturenames:
        try:
            planned = session_of(metafunc.config).planned
        except QuantbenchError as error:  # raised here it would be a traceback for every file
            metafunc.config.stash[_BAD_INPUT] = str(error)
            planned = {}
        wanted = metafunc.definition.get_closest_marker(_READS)
        chosen = {each: scenario for each, scenario in planned.items() if wanted is None or scenario.reads == wanted.args[0]}
        marks = {each: [pytest.mark.gpu] if scenario.conditions.device != "cpu" else [] for each, scenario in chosen.items()}
        metafunc.parametrize(PARAMETER, [pytest.param(each, id=each, marks=marks[each]) for each in chosen])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """End with one sentence when the options ask for something impossible."""
    if _BAD_INPUT in config.stash:
        raise pytest.UsageError(f"quantbench: {config.stash[_BAD_INPUT]}")
    items[:] = [item for item in items if not _has_no_scenario(item)]
    for item in items:
        if _scenario_of(item):
            item.add_marker(_QUIET)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Open the store for what was selected, before anything is measured."""
    if session.config.option.collectonly:
        return
    selected = [identifier for item in session.items if (identifier := _scenario_of(item))]
    asks = any(FIXTURE in getattr(item, "fixturenames", ()) for item in session.items) and not beside_other_tests()
    if selected or asks:
        try:
            session_of(session.config).start(list(dict.fromkeys(selected)), verbosity=_verbosity(session.config))
        except QuantbenchError as error:
            raise pytest.UsageError(f"quantbench: {error}") from None


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """How long the run will take, and what was left out; nothing under ``-q``."""
    state = config.stash.get(_SESSION, None)
    return list(state.announced) if state and config.get_verbosity() >= 0 else []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give a scenario's test its clock and its group before pytest-benchmark looks at them."""
    if identifier := _scenario_of(item):
        clock = item.stash[_CLOCK] = ReplayClock()
        group = benchmark_group(session_of(item.config).planned[identifier], getattr(item, "originalname", item.name))
        item.add_marker(pytest.mark.benchmark(group=group, timer=clock), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """After all tests: measure again what other work disturbed, unless the session was stopped (``-x``, Ctrl-C)."""
    result = yield
    state = session.config.stash.get(_SESSION, None)
    if state is not None and not (session.shouldstop or session.shouldfail):
        renewed = set(state.measure_again())
        for each in session.config.stash.get(_REPLAYED, []):
            if each.scenario in renewed:
                each.renew()
    session.config.stash[_OWN].enter()
    return result


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Stop the engine and write the run's row.

    A session in which no test failed still fails if nothing that was selected was measured, or by a regression.
    """
    state = session.config.stash.get(_SESSION, None)
    if state is not None:
        interrupted = exitstatus == pytest.ExitCode.INTERRUPTED
        state.finish(interrupted=interrupted)
        found = session.config.stash[_COMPARISON] = None if interrupted else _compared(state)
        if exitstatus == pytest.ExitCode.OK and state.nothing:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        elif exitstatus == pytest.ExitCode.OK and found and found.fails:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            session.config.stash[FAILED_COMPARISON] = found.ended


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The decision, the table behind it, what failed, and where the results are."""
    state = config.stash.get(_SESSION, None)
    if state is None or not state.records:
        return
    terminalreporter.section("quantbench")
    brief = config.option.verbose < 0
    found = config.stash.get(_COMPARISON, None)
    compared = [] if found is None else [*found.sentence, "", *([] if brief else found.table)]
    for line in [*compared, *_summary(state, brief=brief), *state.notes]:
        terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add the hardware facts that decide whether two runs may be compared."""
    from dataclasses import asdict

    from quantbench.core.machine import describe

    machine_info["quantbench"] = {**asdict(describe()), "gpus": list(describe().gpus), "fingerprint": describe().fingerprint}


class Measured:
    """The ``quantbench`` fixture: one scenario's record, and its durations for pytest-benchmark."""

    def __init__(self, request: pytest.FixtureRequest, identifier: str, benchmark: Any) -> None:
        """``benchmark`` is pytest-benchmark's fixture, or None without that plugin."""
        self._session = session_of(request.config)
        self._clock = request.node.stash[_CLOCK]
        self._benchmark = benchmark
        self._seconds: Callable[[Trace], Sequence[float]] | None = None
        self._replayed = request.config.stash.setdefault(_REPLAYED, [])
        self.scenario: Scenario = self._session.planned[identifier]

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
        self._replayed.append(self)

    def renew(self) -> None:
        """Replace the replayed figures with those of the scenario's newest record."""
        benched = self._benchmark.stats
        if benched is None or self._seconds is None:  # --benchmark-disable
            return
        self._describe()
        fresh = type(benched.stats)()
        for sample in self._seconds(self.trace):
            fresh.update(sample)
        benched.stats = fresh

    def _describe(self) -> None:
        self._benchmark.extra_info.clear()
        self._benchmark.extra_info.update(extra_info(self.record))


_ASKS_FOR_ITS_TABLE = tuple(
    f"--benchmark-{name}"
    for name in ("sort", "group-by", "columns", "name", "time-unit", "histogram", "compare", "verbose", "cprofile")
)
"""Options of pytest-benchmark that are about its table of results; some are beginnings of several."""


class _WithBenchmark:
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
        return Measured(request, quantbench_scenario, benchmark)


class _WithoutBenchmark:
    @pytest.fixture
    def quantbench(self, request: pytest.FixtureRequest, quantbench_scenario: str) -> Measured:
        """One scenario's measurement."""
        return Measured(request, quantbench_scenario, None)


@pytest.fixture(scope="session")
def quantbench_measure(pytestconfig: pytest.Config) -> OwnTests:
    """Measures a variant, as ``quantbench.measure`` does: ``quantbench_measure(model, "gguf/q4_k_m", prompts="ten")``."""
    return pytestconfig.stash[_OWN]


def session_of(config: pytest.Config) -> Session:
    """The session of this pytest, planned on first use; UsageError where the options ask for something impossible."""
    if _SESSION not in config.stash:
        asked = RunOptions.read(lambda option: raw_setting(config, option))
        command = " ".join(["pytest", *config.invocation_params.args])
        config.stash[_SESSION] = Session(asked, command=command, root=config.rootpath, untimed=beside_other_tests())
    return config.stash[_SESSION]


def _summary(state: Session, *, brief: bool) -> list[str]:
    """The run's summary; where tests only asserted, what to ship is not their question, and only where the rows are is told."""
    if not state.selected:
        return [f"results of run {state.run_id}: {state.results} (quantbench.load({state.results!r}) reads them)"]
    from quantbench.tables.summary import run_summary

    return run_summary(state.results, state.run_id, brief=brief)


def _compared(state: Session) -> Outcome | None:
    """The run compared with its baseline, where one was named and something was measured."""
    if not state.baseline or not state.records:
        return None
    from quantbench.judge.compare.gate import gate
    from quantbench.tables.render import terminal_width

    return gate(state.baseline, state.results, state.run_id, fail_on=state.fail_on, width=terminal_width())


def raw_setting(config: pytest.Config, option: Option) -> Any:
    """A setting as given; a path is relative to pytest's working directory, or to the root if it is from an ini file."""
    given = config.getoption(f"quantbench_{option.key}")
    if option.key in _COMMAND_LINE_ONLY:
        return given
    written = _written(config, option)
    base = config.rootpath if given is None and written else config.invocation_params.dir
    raw = given if given is not None else option.default if written in ("", None) else written
    if not isinstance(raw, str) or not raw or "://" in raw:
        return raw
    is_path = option.key in _PATHS or (option.key == "compare" and (base / raw).exists())  # else it names runs
    return str(base / raw) if is_path else raw


def _written(config: pytest.Config, option: Option) -> Any:
    """What an ini file says of a setting; empty where it says nothing. UsageError for what is no value of its kind."""
    key = f"quantbench_{option.key}"
    try:
        return config.getini(key)
    except (TypeError, ValueError, pytest.UsageError) as error:
        raise UsageError(f"ini key {key}: {error}") from None


def _asks_for_benchmark_table(config: pytest.Config) -> bool:
    """Whether an option about that table was given: on the command line, in the ini file's addopts, or in PYTEST_ADDOPTS."""
    given = [*config.invocation_params.args, *config.getini("addopts"), *shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))]
    return any(str(argument).startswith(_ASKS_FOR_ITS_TABLE) for argument in given)


def _verbosity(config: pytest.Config) -> int | None:
    """Pytest's verbosity; None where it has no terminal output at all."""
    verbosity: int = config.option.verbose
    return verbosity if config.pluginmanager.hasplugin("terminalreporter") else None


def _scenario_of(item: pytest.Item) -> str | None:
    """The id of the scenario that a test measures, or None for any other test."""
    callspec = getattr(item, "callspec", None)
    found = callspec.params.get(PARAMETER) if callspec is not None else None
    return found if isinstance(found, str) else None


def _has_no_scenario(item: pytest.Item) -> bool:
    """Whether it is the placeholder that pytest collects, as skipped, for a test without any scenario."""
    callspec = getattr(item, "callspec", None)
    return callspec is not None and PARAMETER in callspec.params and _scenario_of(item) is None
