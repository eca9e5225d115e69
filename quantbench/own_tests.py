"""The fixture ``quantbench_measure`` for users' own suites: a variant is measured, and asserted on, in any test.

All tests of a session share one run: its fork servers, its references, its rows.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.errors import QuantbenchError, UnsupportedError
from quantbench.core.record import Status
from quantbench.running.measure import ask, row_of
from quantbench.running.measurement import Absent, MeasuredFigure, Measurement
from quantbench.suite.replay import enter

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from quantbench.running.session import Session

FIXTURE = "quantbench_measure"
_SCENARIO = "quantbench_scenario"
_UNTIMED = "quantbench_untimed"
_BENCHMARKS = "pytest-benchmark"
"""The name under which pytest-benchmark registers its session."""

_ASK_FOR_ENTRIES = ("benchmark_json", "benchmark_save", "benchmark_autosave", "benchmark_compare", "benchmark_histogram")
"""Options that ask pytest-benchmark for what was measured; without one its table would only be in the way."""


class OwnTests:
    """What the fixture gives, and the hooks that go with it: a plugin of one pytest, registered by ``quantbench.plugin``."""

    def __init__(self, config: pytest.Config, session_of: Callable[[pytest.Config], Session]) -> None:
        """``session_of`` plans the session on first use; it is started then, unless it was before."""
        self._config = config
        self._session_of = session_of
        self._session: Session | None = None
        self._item: pytest.Item | None = None
        self._seen: dict[str, MeasuredFigure | Absent] = {}

    def __repr__(self) -> str:
        """Pytest shows it beside a failure."""
        return f"<{FIXTURE}>"

    def __call__(self, model: str | os.PathLike[str], variant: str, *, prompts: str = "", **settings: Any) -> Measurement:
        """See ``quantbench.measure``; here a scenario that cannot run skips the test, and one that failed fails it."""
        __tracebackhide__ = True
        try:
            session = self._started()
            scenario, reading = ask(session, os.fspath(model), variant, prompts, settings)
            self._tell(_SCENARIO, scenario.id)
            if session.untimed:
                self._tell(_UNTIMED, f"{session.untimed}; rows: {session.results}")
            row = row_of(session, session.runner.measure(scenario))
        except UnsupportedError as error:
            pytest.skip(str(error))
        except QuantbenchError as error:
            pytest.fail(str(error), pytrace=False)
        return Measurement(row, replace(reading, doubt=pytest.skip, seen=self._note))

    def _started(self) -> Session:
        session = self._session = self._session_of(self._config)
        if not session.run_id:  # in a worker of pytest-xdist, or where a test asks for the fixture at run time
            session.start((), verbosity=None)
        return session

    def _tell(self, name: str, value: str) -> None:
        """Add to the properties of the test that runs, which reach JUnit's XML and the main process of pytest-xdist."""
        if self._item and (name, value) not in self._item.user_properties:
            self._item.user_properties.append((name, value))

    def _note(self, figure: MeasuredFigure | Absent) -> None:
        self._seen[repr(figure)] = figure

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Forget what the test before looked at."""
        self._item, self._seen = item, {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_assertrepr_compare(self, op: str, left: object, right: object) -> list[str] | None:
        """A failed comparison of a figure: with its interval, what it is of, and how to measure it again."""
        figures = [each for each in (left, right) if isinstance(each, MeasuredFigure)]
        about = dict.fromkeys(line for each in figures for line in each.about)
        return [f"{left!r} {op} {right!r}", *about] if figures else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Where a test failed: the figures that it had looked at, unless its assertion says all of that already."""
        report = yield
        if report.failed and (lines := list(self._lines(report.longreprtext))):
            report.sections.append(("quantbench", "\n".join(lines)))
        return report

    def _lines(self, said: str) -> Iterator[str]:
        """Figures below the scenario they are of, and how to measure that again, as far as it was not ``said``."""
        by_scenario: dict[tuple[str, str], list[str]] = {}
        for figure in self._seen.values():
            if isinstance(figure, Absent):
                yield repr(figure)
            else:
                of, meaning, again = figure.about
                by_scenario.setdefault((of, again), []).append(f"  {figure!r}: {meaning}")
        for (of, again), lines in by_scenario.items():
            if again not in said:
                yield from (of, *lines, f"  {again}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say once, in the main process of pytest-xdist, that nothing was timed."""
        reports = [report for some in terminalreporter.stats.values() for report in some]
        told = [each for report in reports for each in getattr(report, "user_properties", ())]
        for sentence in dict.fromkeys(value for name, value in told if name == _UNTIMED):
            terminalreporter.write_line(f"quantbench: {sentence}")

    def enter(self) -> None:
        """Hand what was measured to pytest-benchmark, where one of its options asks for it."""
        benchmarks = self._config.pluginmanager.get_plugin(_BENCHMARKS)
        asked = any(self._config.getoption(name, None) for name in _ASK_FOR_ENTRIES)
        session = self._session
        if session is None or benchmarks is None or not asked:
            return
        own = set(session.asked.values()) - set(session.selected)  # the selected have entries of their own tests
        for record in session.records:
            trace = session.runner.trace(record.scenario)
            if record.scenario in own and record.status is Status.OK and trace:
                enter(benchmarks, record, trace)
