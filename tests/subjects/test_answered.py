"""All prompts of a set are scored; only the first of them are timed and answered."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from quantbench import load
from quantbench.core.machine import describe
from quantbench.core.scenario import PROFILES, Conditions, Scenario, Variant
from quantbench.planning.options import Plan
from quantbench.results.store import Run, Store
from quantbench.running.runner import Runner

if TYPE_CHECKING:
    from pathlib import Path

EFFORT = replace(PROFILES["quick"], min_rounds=1, max_rounds=1, energy=False, besides=False)


@pytest.mark.usefixtures("artifacts")
@pytest.mark.parametrize(("asked", "answered"), [(2, {0, 1}), (0, {0, 1, 2})], ids=["two of three", "all"])
def test_the_first_prompts_are_answered_and_all_are_scored(tmp_path: Path, asked: int, answered: set[int]) -> None:
    (tmp_path / "three.txt").write_text("Return a new list\nRaises a ValueError if the\nThe class\n")
    conditions = Conditions(
        reference="gguf/f16", output_tokens=4, answer_tokens=6, continuation_tokens=8, threads=1, answered_prompts=asked
    )
    scenario = Scenario(
        model="canary",
        variant=Variant(method="gguf", precision="q2_k"),
        prompts=str(tmp_path / "three.txt"),
        conditions=conditions,
    )
    run = Run(machine=describe(), versions={}, command="", commit="", profile="quick", engine="inline")
    results = str(tmp_path / "results")
    plan = Plan(scenarios=(scenario,), effort=EFFORT, engine="inline")
    with Runner(plan, Store(results, run)) as runner:
        runner.measure(scenario)
    (row,) = load(results).to_dict("records")
    assert (row["status"], row["clusters"], row["answered_prompts"]) == ("ok", 3, asked), row["reason"]
    assert row["scored_tokens"] <= 24
    assert set(load(results, "outputs")["index"]) == answered
    samples = load(results, "samples")
    assert set(samples[samples["phase"].eq("e2e")]["index"]) == answered
    assert row["score_positions"] == 256
    assert 0 <= row["kld_slicing"] < row["kld_mean"]
