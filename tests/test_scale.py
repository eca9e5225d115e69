"""What holds at any size: a fleet loses no row and is kept busy, and of many runs only the rows that are asked for are held."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quantbench.core.scenario import PROFILES, Scenario, Variant
from quantbench.planning import planner, prompts
from quantbench.results.runs import Runs
from quantbench.results.schema import schema
from quantbench.results.store import load
from quantbench.running import estimate
from quantbench.running.estimate import MachineSpeed
from quantbench.running.placing import Need
from quantbench.running.submission import submission_order

HARNESS = Path(__file__).parents[1] / "bench" / "harness"
RUNS, ROWS = 100, 200
TEXT = 500
"""Characters of a text in each row."""


@pytest.fixture(scope="module")
def fleet() -> Any:
    """The harness's simulated fleet, on which ``scale-fleet`` has 10,000 jobs."""
    sys.path.insert(0, os.fspath(HARNESS))
    try:
        return import_module("fleet")
    finally:
        sys.path.remove(os.fspath(HARNESS))


def rng(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - simulated


@pytest.mark.parametrize("timed", [0.0, 0.3, 1.0])
def test_a_fleet_stores_every_row_though_machines_die(fleet: Any, timed: float) -> None:
    work = fleet.workload(rng(1), jobs=400, models=5, timed=timed)
    kind = fleet.Kind("", 4, 4, timed)
    found = fleet.Fleet(work, kind.nodes, rng(2), deaths=0.1).run(range(400))
    planned = {row for job in work.jobs for row in job.rows}
    assert len(found.deaths) > 5
    assert set(found.stored) | found.given_up == planned
    assert not set(found.stored) & found.given_up
    assert set(found.stored.values()) == {1}


def test_a_row_that_was_given_up_is_told(fleet: Any) -> None:
    """With machines that die in every job nothing can be measured, and each job is given up in the end."""
    work = fleet.workload(rng(1), jobs=20, models=1, timed=1.0)
    found = fleet.Fleet(work, fleet.Kind("", 2, 1, 1.0).nodes, rng(2), deaths=1.0).run(range(20))
    assert found.given_up
    assert fleet.lost_rows(work, found) == 0


def test_the_order_of_submission_keeps_a_fleet_busy(fleet: Any) -> None:
    """Even of 400 jobs, whose end is a larger part of the whole; as planned a fleet waits for what was sent last."""
    work = fleet.workload(rng(3), jobs=400, models=2, timed=0.1)
    nodes = fleet.Kind("", 4, 4, 0.1).nodes

    def share(order: Any) -> float:
        found = fleet.Fleet(work, nodes, rng(2)).run(order)
        return float(found.ideal_s(work, nodes) / found.seconds)

    ordered = share(submission_order([(job.need, job.expected_s) for job in work.jobs]))
    assert 0.9 < ordered <= 1
    assert ordered > share(range(400)) + 0.05


def test_what_takes_most_of_a_machine_and_longest_is_sent_first() -> None:
    small, large, alone = (
        Need(cpus=1, gpus=1, alone=False), Need(cpus=1, gpus=2, alone=False), Need(cpus=1, gpus=0, alone=True),
    )  # fmt: skip
    jobs = [(small, 9.0), (small, None), (alone, 1.0), (large, 1.0), (alone, 2.0), (small, 9.0)]
    assert submission_order(jobs) == [4, 2, 3, 1, 0, 5]
    assert submission_order([]) == []


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that somebody merged into one file: a hundred runs, each of whose rows holds a text."""
    root = tmp_path_factory.mktemp("merged")
    count = RUNS * ROWS
    told = {
        "run_id": [f"run-{number // ROWS:03d}" for number in range(count)],
        "run_number": [number // ROWS for number in range(count)],
        "scenario_id": [f"model/variant-{number % ROWS}/ten" for number in range(count)],
        "reason": [f"{number:0{TEXT}d}" for number in range(count)],
    }
    whole = schema("scenarios")
    columns = {field.name: pa.array(told[field.name], field.type) for field in whole if field.name in told}
    columns["started_at"] = pa.array(told["run_number"], pa.int64()).cast(pa.timestamp("us", "UTC"))
    (root / "scenarios").mkdir()
    pq.write_table(pa.table(columns), root / "scenarios" / "all.parquet")
    return root


POOLS: list[pa.MemoryPool] = []
"""They have to outlive what is allocated from them."""


def allocated(work: Any) -> tuple[Any, int]:
    """What ``work`` gives, and the most bytes of arrow's memory that it took."""
    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    POOLS.extend([usual, pool])
    pa.set_memory_pool(pool)
    try:
        return work(), pool.max_memory()
    finally:
        pa.set_memory_pool(usual)


def test_of_a_merged_store_only_the_rows_of_the_run_are_held(merged: Path) -> None:
    everything, most = allocated(lambda: load(str(merged)))
    assert len(everything) == RUNS * ROWS
    for read in (lambda: Runs(str(merged)).latest(), lambda: load(str(merged), run="run-099")):
        rows, peak = allocated(read)
        assert set(rows["run_id"]) == {"run-099"}
        assert rows["reason"].tolist() == [f"{number:0{TEXT}d}" for number in range((RUNS - 1) * ROWS, RUNS * ROWS)]
        assert peak < most / 3


def test_the_runs_of_a_merged_store_come_in_their_order(merged: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Runs(str(merged)).latest(3, exclude=["run-098"])["run_id"].unique().tolist() == ["run-096", "run-097", "run-099"]
        assert Runs(str(merged)).of(["run-050", "run-003"])["run_id"].unique().tolist() == ["run-003", "run-050"]


def test_an_estimate_reads_each_model_and_prompt_set_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many scenarios share them: of 100,000 scenarios it took most of the time before a run."""
    asked: list[str] = []
    for module, name in ((planner, "read_architecture"), (prompts, "load")):
        usual = getattr(module, name)
        monkeypatch.setattr(module, name, lambda what, usual=usual, **how: asked.append(what) or usual(what, **how))
    scenarios = [
        Scenario(model="canary", variant=Variant(method="torch", precision=precision), prompts=name, repeat=repeat)
        for precision in ("fp32", "bf16") for name in ("ten", "mixed") for repeat in range(3)
    ]  # fmt: skip
    found = estimate.expected(scenarios, PROFILES["quick"], MachineSpeed(bandwidth_bps=1e10, cores=2))
    assert len(found) == 6
    assert sorted(asked) == ["canary", "mixed", "ten"]
