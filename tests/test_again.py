"""Measuring again what other work disturbed: how often, when, and what is said of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from quantbench.core.scenario import Conditions, Scenario, Variant
from quantbench.results.store import load
from quantbench.running.again import QUIET_WITHIN_S, TIMES, Again, measure_again

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

BUSY = "other processes took 50% of the CPU time"


def scenario(precision: str) -> Scenario:
    variant = Variant(method="torch", precision=precision)
    return Scenario(model="canary", variant=variant, prompts="two", conditions=Conditions())


class Machine:
    """A runner and its clock: each scenario is quiet after so many times again; jobs take 10 s."""

    def __init__(self, quiet_after: dict[str, int], *, busy_until: float = 0.0) -> None:
        self.rest = {scenario(name): times for name, times in quiet_after.items()}
        self.again: list[str] = []
        self.now = 0.0
        self.busy_until = busy_until

    def disturbed(self) -> Sequence[Sequence[Scenario]]:
        return [[each] for each, times in self.rest.items() if times > 0]

    def took_s(self, group: Sequence[Scenario]) -> float:
        return 10.0 * len(group)

    def measure_again(self, group: Sequence[Scenario]) -> None:
        self.now += 10.0
        for each in group:
            self.rest[each] -= 1
            self.again.append(each.variant.precision)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def run(self, budget_s: float) -> Again:
        return measure_again(
            self, budget_s=budget_s, busy=lambda: BUSY if self.now < self.busy_until else "", clock=lambda: self.now,
            sleep=self.sleep,
        )  # fmt: skip


def test_what_was_disturbed_is_measured_again_at_most_twice() -> None:
    machine = Machine({"fp32": 0, "bf16": 1, "fp16": 9})
    done = machine.run(1000)
    assert machine.again == ["bf16", "fp16", "fp16"]
    assert TIMES == 2
    assert list(done.sentences) == [
        "measured beside other work: 2 scenarios were measured again at the end",
        "measured beside other work: 1 scenario is marked ~",
    ]


def test_nothing_is_said_of_a_quiet_run() -> None:
    machine = Machine({"fp32": 0})
    assert not list(machine.run(1000).sentences)
    assert machine.now == 0


def test_it_waits_for_a_quiet_moment() -> None:
    machine = Machine({"bf16": 1}, busy_until=QUIET_WITHIN_S / 2)
    assert machine.run(1000).left == 0
    assert machine.now >= QUIET_WITHIN_S / 2 + 10


def test_a_machine_that_stays_busy_is_not_measured_on_again() -> None:
    machine = Machine({"bf16": 1, "fp16": 1}, busy_until=1e9)
    done = machine.run(1000)
    assert not machine.again
    assert machine.now <= QUIET_WITHIN_S + 1
    assert list(done.sentences) == [f"measured beside other work: 2 scenarios are marked ~; the machine stayed busy ({BUSY})"]


def test_it_takes_no_longer_than_its_share_of_the_run() -> None:
    machine = Machine({"bf16": 2, "fp16": 2, "fp32": 2})
    done = machine.run(25)
    assert machine.again == ["bf16", "fp16"]
    assert machine.now <= 25
    assert done.left == 3
    assert "half of the run's time" in done.why


DISTURBED_ONCE = """
from dataclasses import replace
from quantbench.running import again, runner

measured, seen = runner.measured, []

def once(case, *others):
    record = measured(case, *others)
    precision = case.scenario.variant.precision
    seen.append(precision)
    first = precision != "exact" and seen.count(precision) == 1
    told = {"disturbed": first, "disturbance": "told so" * first, "stub_answers": len(seen)}
    return replace(record, values={**record.values, **told})

runner.measured = once
again.measure_again.__kwdefaults__["busy"] = lambda: ""
again.SHARE = 100.0
"""


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, stub_path: Path, stub_cache: Callable[[Path], Path]
) -> tuple[Path, str]:
    """A run of two variants of the stub; one of them is disturbed when it is measured first."""
    folder = tmp_path_factory.mktemp("again")
    (folder / "conftest.py").write_text(DISTURBED_ONCE)
    (folder / "test_latency.py").write_text("from quantbench.suite.test_latency import test_decode\n")
    (folder / "matrix.toml").write_text('control = false\nprompts = ["two"]\n[methods]\nstub = ["exact", "noisy"]\n')
    command = [
        sys.executable, "-m", "pytest", "--quantbench-matrix=matrix.toml", "--quantbench-profile=quick", "-v",
        "-p", "no:cacheprovider", "--quantbench-no-probes", "--quantbench-reference=stub/exact",
        "--benchmark-json=benchmark.json",
    ]  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    variables = {**kept, "PYTHONPATH": str(stub_path), "QUANTBENCH_CACHE": str(stub_cache(folder)), "STUB_UNWATCHED": "1"}
    variables["STUB_WITHOUT_TORCH"] = "1"
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout + done.stderr


def test_its_row_is_replaced_and_counts_the_attempts(ran: tuple[Path, str]) -> None:
    rows = load(str(ran[0] / "results")).set_index("precision")
    assert len(rows) == 2
    assert rows["attempts"].to_dict() == {"exact": 1, "noisy": 2}
    assert not rows["disturbed"].any()
    assert "measured beside other work: 1 scenario was measured again at the end" in ran[1]


def test_the_json_of_pytest_benchmark_holds_the_new_figures(ran: tuple[Path, str]) -> None:
    noisy = next(
        each for each in json.loads((ran[0] / "benchmark.json").read_text())["benchmarks"] if "noisy" in each["name"]
    )
    samples = load(str(ran[0] / "results"), "samples")
    samples = samples[samples["scenario_id"].str.contains("noisy")]
    gaps = samples[samples["phase"] == "gap"].groupby("round")["value_s"].mean()
    assert noisy["extra_info"]["stub_answers"] == 3  # the third record
    assert noisy["extra_info"]["disturbed"] is False
    assert noisy["stats"]["data"] == pytest.approx(list(gaps))


def test_progress_tells_the_jobs_that_are_done_again(ran: tuple[Path, str]) -> None:
    assert "3 of 3, canary stub/noisy (again): ok" in ran[1]
