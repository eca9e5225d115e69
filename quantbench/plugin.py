"""The pytest plugin: options, parametrization, the ``quantbench`` fixture, and the summary. Glue only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.errors import QuantbenchError, told
from quantbench.core.outside import exists, is_file
from quantbench.core.streams import reopen_closed
from quantbench.own_tests import FIXTURE, OwnTests
from quantbench.planning.options import RunOptions
from quantbench.pytest_settings import add_settings, raw_setting
from quantbench.running.measure import beside_other_tests
from quantbench.running.session import Session
from quantbench.scenario_tests import PARAMETER, ScenarioTests, WithBenchmark, WithoutBenchmark, scenario_of

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from quantbench.judge.compare.gate import Outcome


_READS = "quantbench_reads"
_MOST_COLUMNS = 100
"""Columns of a sentence, also on a wider terminal."""
_OWN = pytest.StashKey[OwnTests]()
_SCENARIOS = pytest.StashKey[ScenarioTests]()
_BAD_INPUT = pytest.StashKey[str]()
FAILED_COMPARISON = pytest.StashKey[str]()
"""The outcome of the comparison, where that alone failed the session: ``regression`` or ``insufficient``."""
_COMPARISON = pytest.StashKey["Outcome | None"]()
_SESSION = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and the ini keys; called before pytest writes to a stream, or captures it."""
    reopen_closed()
    add_settings(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and the fixture, and make the folder that ``--benchmark-json`` will be written to."""
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.addinivalue_line("markers", f"{_READS}(what): only scenarios whose model reads that: prompts, text or inputs")
    has_benchmark = config.pluginmanager.hasplugin("benchmark")
    if not has_benchmark:
        config.addinivalue_line("markers", "benchmark: settings of pytest-benchmark, which is not active")
    config.stash[_SCENARIOS] = (WithBenchmark if has_benchmark else WithoutBenchmark)(config, session_of)
    config.pluginmanager.register(config.stash[_SCENARIOS], "quantbench-scenarios")
    config.stash[_OWN] = OwnTests(config, session_of)
    config.pluginmanager.register(config.stash[_OWN], "quantbench-own-tests")
    json_file: Path | None = getattr(config.option, "benchmark_json", None)
    if json_file is not None:
        _require_place(json_file)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per planned scenario, with the scenario's id as the test's id; those that ask for a GPU are marked ``gpu``."""
    if PARAMETER in metafunc.fixturenames:
        try:
            planned = session_of(metafunc.config).planned
        except (QuantbenchError, OSError) as error:  # raised here it would be a traceback for every file
            metafunc.config.stash[_BAD_INPUT] = told(error)
            planned = {}
        wanted = metafunc.definition.get_closest_marker(_READS)
        chosen = {each: scenario for each, scenario in planned.items() if wanted is None or scenario.reads == wanted.args[0]}
        marks = {each: [pytest.mark.gpu] if scenario.conditions.device != "cpu" else [] for each, scenario in chosen.items()}
        metafunc.parametrize(PARAMETER, [pytest.param(each, id=each, marks=marks[each]) for each in chosen])


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """End with one sentence when the options ask for something impossible."""
    if _BAD_INPUT in config.stash:
        raise pytest.UsageError(f"quantbench: {config.stash[_BAD_INPUT]}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Open the store for what was selected, before anything is measured."""
    if session.config.option.collectonly:
        return
    selected = [identifier for item in session.items if (identifier := scenario_of(item))]
    asks = any(FIXTURE in getattr(item, "fixturenames", ()) for item in session.items) and not beside_other_tests()
    if selected or asks:
        try:
            session_of(session.config).start(list(dict.fromkeys(selected)), verbosity=_verbosity(session.config))
        except (QuantbenchError, OSError) as error:  # the latter where the system has no files or processes left
            raise pytest.UsageError(f"quantbench: {told(error)}") from None


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """How long the run will take, and what was left out; nothing under ``-q``."""
    state = config.stash.get(_SESSION, None)
    if state is None or config.get_verbosity() < 0:
        return []
    from quantbench.tables.render import terminal_width, wrap

    width = min(terminal_width(), _MOST_COLUMNS)
    return [line for sentence in state.announced for line in wrap(sentence, width, "  ")]


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """After all tests: measure again what other work disturbed, unless the session was stopped (``-x``, Ctrl-C)."""
    result = yield
    state = session.config.stash.get(_SESSION, None)
    if state is not None and not (session.shouldstop or session.shouldfail):
        session.config.stash[_SCENARIOS].renew(set(state.measure_again()))
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


@pytest.fixture(scope="session")
def quantbench_measure(pytestconfig: pytest.Config) -> OwnTests:
    """Measures a variant, as ``quantbench.measure`` does: ``quantbench_measure(model, "gguf/q4_k_m", prompts="ten")``."""
    return pytestconfig.stash[_OWN]


def _require_place(file: Path) -> None:
    """Make the folder that a file will be written to; UsageError where none can be, now and not when all is measured."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(f"--benchmark-json: {file.parent} cannot be created ({error.strerror})") from None
    if exists(file) and not is_file(file):
        raise pytest.UsageError(f"--benchmark-json: {file} is not a regular file; name another")


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


def _verbosity(config: pytest.Config) -> int | None:
    """Pytest's verbosity; None where it has no terminal output at all."""
    verbosity: int = config.option.verbose
    return verbosity if config.pluginmanager.hasplugin("terminalreporter") else None
