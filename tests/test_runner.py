"""What a reference that cannot be had costs: similarity, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.job import Failure
from quantbench.core.machine import describe
from quantbench.core.record import Missing, Status
from quantbench.core.scenario import Conditions, Effort, Scenario, Variant
from quantbench.planning.case import Cases
from quantbench.planning.options import Plan
from quantbench.results.store import Run, Store, load
from quantbench.running.jobs import Jobs
from quantbench.running.references import identity
from quantbench.running.runner import Runner

if TYPE_CHECKING:
    from pathlib import Path

SHORT = Conditions(threads=1, output_tokens=2, answer_tokens=2, continuation_tokens=2)


@pytest.mark.parametrize("status", [Status.TIMEOUT, Status.ERROR])
def test_a_reference_that_fails_costs_similarity_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: Status
) -> None:
    """It was tried once, and the scenario measured without it."""
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / "cache"))
    run_job = Jobs.run
    tried = []

    def fail(jobs: Jobs, kind: Any, *arguments: Any, **named: Any) -> tuple[Path, Failure | None]:
        tried.append(kind)
        if kind == "reference":
            return tmp_path, Failure(status=status, reason="it was not to be")
        return run_job(jobs, kind, *arguments, **named)

    monkeypatch.setattr(Jobs, "run", fail)
    scenario = Scenario(model="canary", variant=Variant(method="torch", precision="bf16"), prompts="two", conditions=SHORT)
    run = Run(machine=describe(), versions={}, command="", commit="", profile="quick", engine="inline")
    plan = Plan(
        scenarios=(scenario,), effort=Effort(min_rounds=1, max_rounds=1, budget_s=0.01, energy=False, besides=False),
        engine="inline", keep_jobs=tmp_path / "jobs",
    )  # fmt: skip
    with Runner(plan, Store(str(tmp_path / "results"), run)) as runner:
        record = runner.measure(scenario)
    assert tried.count("reference") == 1
    assert record.status is Status.OK
    missing = record.values["kld_mean"]
    assert isinstance(missing, Missing)
    assert missing.reason.startswith("the reference torch/fp32 could not be made: it was not to be")
    assert ("--timeout" in missing.reason) is (status is Status.TIMEOUT)
    row = load(str(tmp_path / "results")).iloc[0]
    assert row["status"] == "ok"
    assert row["decode_tps"] > 0
    assert missing.reason in row["null_reasons"]


def test_the_artifact_of_a_reference_is_not_keyed_by_what_does_not_make_it() -> None:
    cases = Cases()

    def key(prompts: str = "two", **asked: Any) -> dict[str, object]:
        variant = Variant(method="torch", precision="fp32")
        wanted = Scenario(model="canary", variant=variant, prompts=prompts, conditions=replace(SHORT, **asked))
        return identity(cases.of(wanted))

    assert key(threads=2) == key(output_tokens=9) == key()
    assert key(continuation_tokens=9) != key() != key(answer_tokens=9)
    assert key(seed=1) != key()
