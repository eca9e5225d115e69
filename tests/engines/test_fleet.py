"""A fleet's driver and its stations, with nothing between them: errands are carried out when the driver asks what ended."""

from __future__ import annotations

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from quantbench.core.errors import UsageError
from quantbench.core.job import Failure
from quantbench.core.machine import describe
from quantbench.core.record import Status
from quantbench.core.scenario import PROFILES, Conditions, Scenario, Variant
from quantbench.methods import METHODS
from quantbench.planning.options import Plan
from quantbench.results.store import Run, Store, load
from quantbench.running.engines import ENGINES, Engine
from quantbench.running.engines.inline import open_inline
from quantbench.running.engines.slurm import parameters
from quantbench.running.errand import Order
from quantbench.running.fleet import FleetRunner
from quantbench.running.placing import Need
from quantbench.running.progress import Progress
from quantbench.running.runner import Runner
from quantbench.running.station import Station, carry_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from quantbench.running.errand import Errand, Report

SHORT = Conditions(reference="stub/exact", threads=1, output_tokens=2, answer_tokens=2, continuation_tokens=2)
EXACT, NOISY, ERROR = (
    Scenario(model="canary", variant=Variant(method="stub", precision=name), prompts="two", conditions=SHORT)
    for name in ("exact", "noisy", "error")
)
SAME = ("scenario_key", "status", "reason", "machine", "kld_mean", "top1_agreement", "weight_bytes", "chrf", "attempts")


class Toy:
    """A machine that works while it is waited for; ``breaks`` at some errands."""

    notes = ("the machine creaks",)

    def __init__(self, breaks: frozenset[Scenario]) -> None:
        self.sent: list[Errand] = []
        self._breaks = breaks

    def send(self, errands: Sequence[Errand]) -> None:
        self.sent += errands

    def ended(self, timeout_s: float) -> Sequence[tuple[Errand, Report | Failure]]:
        errand = self.sent.pop(0)
        if self._breaks & set(errand.scenarios):
            return [(errand, Failure(status=Status.CRASHED, reason="it broke"))]
        return [(errand, carry_out(errand))]


@pytest.fixture(autouse=True)
def toy(plug_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The engine, and the stub method; what it opened last, and what it is to break at."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    plug_in(METHODS, importlib.import_module("stub_method").open_stub)
    about: dict[str, Any] = {"breaks": frozenset()}

    @contextmanager
    def open_toy(order: Order) -> Iterator[Toy]:
        about["fleet"] = Toy(about["breaks"])
        yield about["fleet"]

    plug_in(ENGINES, Engine("toy", "in this process", open_inline, open_toy))
    yield about
    carry_out_nothing()


def carry_out_nothing() -> None:
    """Have the station closed that the test left open."""
    from quantbench.running import station

    for opened in station._OPEN.values():
        opened.close()
    station._OPEN.clear()


def order(results: Path, *scenarios: Scenario, **run: Any) -> tuple[Order, Store]:
    """The order of a run that has begun, and its store."""
    facts = {"machine": describe(), "versions": {}, "command": "", "commit": "", "profile": "quick", "engine": "toy", **run}
    store = Store(str(results), Run(**facts))
    store.begin(planned=len(scenarios))
    plan = Plan(scenarios=scenarios, effort=replace(PROFILES["quick"], untimed="not beside other tests"), engine="toy")
    return Order(run=store.run, plan=plan, results=str(results), folder=Path.cwd()), store


def measured(asked: Order, store: Store) -> FleetRunner:
    """All scenarios of an order, measured by the fleet."""
    with FleetRunner(asked, store, {}, Progress()) as fleet:
        for scenario in asked.plan.scenarios:
            fleet.measure(scenario)
    return fleet


def rows(results: Path) -> pd.DataFrame:
    """The rows by scenario, those columns that are the same however often they are measured."""
    return load(str(results)).set_index("scenario_id").sort_index()[list(SAME)]


def test_its_rows_are_those_of_a_runner_here(tmp_path: Path) -> None:
    asked, store = order(tmp_path / "fleet", EXACT, NOISY, ERROR)
    fleet = measured(asked, store)
    here, own = order(tmp_path / "here", EXACT, NOISY, ERROR)
    with Runner(here.plan, own) as runner:
        for scenario in here.plan.scenarios:
            runner.measure(scenario)

    pd.testing.assert_frame_equal(rows(tmp_path / "fleet"), rows(tmp_path / "here"))
    assert rows(tmp_path / "fleet").status.tolist() == ["error", "ok", "ok"]
    assert [record.scenario for record in fleet.records] == [EXACT, NOISY, ERROR]
    assert fleet.notes == ("the machine creaks",)
    assert fleet.row(fleet.measure(NOISY))["kld_mean"] == rows(tmp_path / "fleet").kld_mean[NOISY.id] > 0
    assert [trace and len(trace.answers) for trace in map(fleet.trace, asked.plan.scenarios)] == [2, 2, None]


def test_what_is_stored_already_is_not_measured_again(tmp_path: Path, toy: dict[str, Any]) -> None:
    """As after the loss of a machine that had come so far, or of the driver."""
    asked, store = order(tmp_path, EXACT, NOISY, ERROR)
    measured(asked, store)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("scenarios/*/*.parquet")}
    with FleetRunner(asked, store, {}, Progress()):
        errands = list(toy["fleet"].sent)
    station = Station(asked)
    reports = [station.carry_out(errand) for errand in errands]
    station.close()

    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("scenarios/*/*.parquet")}
    assert [report.outcomes[0].resumed for report in reports] == [True, True, False]  # what failed is tried again
    assert [before[path] == after[path] for path in sorted(before)] == [True, True, False]


def test_another_content_under_the_same_id_is_measured(tmp_path: Path, toy: dict[str, Any]) -> None:
    asked, store = order(tmp_path, EXACT)
    measured(asked, store)
    (path,) = tmp_path.rglob("scenarios/*/*.parquet")
    pd.read_parquet(path).drop(columns="date", errors="ignore").assign(scenario_key="of another model").to_parquet(path)
    with FleetRunner(asked, store, {}, Progress()):
        (errand,) = toy["fleet"].sent
    station = Station(asked)
    (outcome,) = station.carry_out(errand).outcomes
    station.close()
    assert not outcome.resumed
    assert outcome.record.scenario_key != "of another model"


def test_a_job_that_no_machine_reports_on_is_a_row_too(tmp_path: Path, toy: dict[str, Any]) -> None:
    toy["breaks"] = frozenset({NOISY})
    asked, store = order(tmp_path, EXACT, NOISY)
    measured(asked, store)
    found = rows(tmp_path)
    assert (found.status[NOISY.id], found.reason[NOISY.id], found.status[EXACT.id]) == ("crashed", "it broke", "ok")


def test_a_machine_that_does_not_see_the_results_says_so(tmp_path: Path, toy: dict[str, Any]) -> None:
    asked, _ = order(tmp_path / "here", EXACT)
    with FleetRunner(asked, Store(asked.results, asked.run, {}), {}, Progress()):
        (errand,) = toy["fleet"].sent
    elsewhere = replace(errand, order=replace(errand.order, results=str(tmp_path / "there")))
    failure = carry_out(elsewhere)
    assert isinstance(failure, Failure)
    assert "is not the same on every machine" in failure.reason
    assert "s3://" in failure.reason
    assert not (tmp_path / "there").exists()


def test_machines_may_open_the_store_of_a_run_at_once(tmp_path: Path) -> None:
    """Each tries whether it can write there, and must not trip over another's trial."""
    asked, _ = order(tmp_path, EXACT)
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: Store(asked.results, asked.run, {}), range(200)))
    assert {store.run_id for store in stores} == {asked.run.run_id}
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_run_that_is_resumed_gives_each_scenario_its_first_number(tmp_path: Path, toy: dict[str, Any]) -> None:
    """Jobs in a queue may have outlived the driver that numbered them."""
    asked, store = order(tmp_path, EXACT, NOISY, ERROR)
    with FleetRunner(asked, store, {(NOISY.id, 0): 1}, Progress()):
        first = [dict(errand.numbers) for errand in toy["fleet"].sent]
    assert first == [{(EXACT.id, 0): 0}, {(NOISY.id, 0): 1}, {(ERROR.id, 0): 2}]
    other = replace(asked, plan=replace(asked.plan, scenarios=(NOISY, EXACT)))
    with FleetRunner(other, store, {(ERROR.id, 0): 0, (NOISY.id, 0): 1}, Progress()):
        numbers = [each for errand in toy["fleet"].sent for each in errand.numbers.values()]
    assert numbers[0] == 1
    assert numbers[1] not in (0, 1)


@pytest.mark.parametrize(("name", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_whose_library_is_not_installed_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    asked, store = order(tmp_path, EXACT)
    asked = replace(asked, plan=replace(asked.plan, engine=name))
    with pytest.raises(UsageError, match=rf"^--engine {name} needs \w+, which is not installed; pip install .*\[{name}\]"):
        FleetRunner(asked, store, {}, Progress()).__enter__()


def test_what_slurm_is_asked_for() -> None:
    effort = replace(PROFILES["quick"], timeout_s=90)
    timed = parameters(Need(cpus=1, gpus=1, alone=True), effort)
    shared = parameters(Need(cpus=4, gpus=0, alone=False), effort)
    assert (timed["slurm_exclusive"], timed["gpus_per_node"], timed["timeout_min"]) == (True, 1, 6)
    assert (shared["cpus_per_task"], shared["gpus_per_node"], "slurm_exclusive" in shared) == (4, 0, False)


def test_one_gpu_of_this_machine_cannot_be_meant(tmp_path: Path) -> None:
    asked, store = order(tmp_path, replace(EXACT, conditions=replace(SHORT, device="cuda:1")))
    with pytest.raises(UsageError, match="give cuda, and each job gets a GPU of its own"):
        FleetRunner(asked, store, {}, Progress()).__enter__()
