"""Batches and lengths from the prompt set's name to the row: measured together, compared one by one."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from quantbench import load
from quantbench.core.machine import describe
from quantbench.core.scenario import PROFILES, Conditions, Scenario, Spec, Variant
from quantbench.methods import METHODS
from quantbench.planning.options import Plan
from quantbench.planning.prompts import parse
from quantbench.results.store import Run, Store
from quantbench.running.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd

    from quantbench.methods import Settings


class Single:
    """A loaded model that has no generate_batch."""

    def __init__(self, model: Any) -> None:
        self.facts = model.facts
        self.generate = model.generate
        self.score = model.score
        self.memory = model.memory
        self.synchronize = model.synchronize


EFFORT = replace(PROFILES["quick"], min_rounds=1, max_rounds=1, energy=False, besides=False)
CONDITIONS = Conditions(output_tokens=4, answer_tokens=4, continuation_tokens=8, threads=1)


def _rows(folder: Path, variants: list[tuple[str, str]], prompts: list[str]) -> pd.DataFrame:
    scenarios = tuple(
        Scenario(
            model="canary",
            variant=Variant(method=method, precision=precision),
            prompts=name,
            batch=batch,
            conditions=CONDITIONS,
        )
        for method, precision in variants
        for name, batch in map(parse, prompts)
    )
    run = Run(machine=describe(), versions={}, command="", commit="", profile="quick", engine="inline")
    plan = Plan(scenarios=scenarios, effort=EFFORT, engine="inline")
    with Runner(plan, Store(str(folder), run)) as runner:
        for scenario in scenarios:
            runner.measure(scenario)
    return load(str(folder)).set_index(["method", "prompts"])


@pytest.mark.usefixtures("artifacts")
def test_a_batch_is_measured_together_and_compared_one_by_one(tmp_path: Path) -> None:
    rows = _rows(tmp_path, [("torch", "bf16"), ("gguf", "q8_0")], ["two", "two@3", "tokens:40@3"])
    assert rows["status"].tolist() == ["ok"] * 6, rows["reason"].tolist()
    assert rows["batch"].tolist() == [1, 3, 3] * 2
    for method in ("torch", "gguf"):
        single, three = rows.loc[(method, "two")], rows.loc[(method, "two@3")]
        same = ["kld_mean", "top1_agreement", "ppl", "exact_match", "weight_bytes", "context"]
        assert three[same].tolist() == single[same].tolist()
        assert three["scenario_key"] != single["scenario_key"]
        assert rows.loc[(method, "tokens:40@3"), "kld_mean"] != single["kld_mean"]
        # a step reads the weights once for all three, and of each its own keys and values
        cached = single["bytes_per_token"] - 3 * (single["bytes_per_token"] - three["bytes_per_token"]) / 2
        assert three["bytes_per_token"] == pytest.approx((single["bytes_per_token"] - cached) / 3 + cached, abs=2)
    samples = load(str(tmp_path), "samples")
    counted = samples[samples["phase"].eq("e2e")].groupby("scenario_id")["tokens"].unique()
    assert {len(each) for each in counted} == {1}
    assert counted["canary/torch-bf16/two"].tolist() == [4]
    assert counted["canary/torch-bf16/two@3"].tolist() == [12]


@pytest.mark.usefixtures("artifacts")
def test_a_method_that_answers_singly_is_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opener = METHODS["torch"].opener

    @contextmanager
    def open_single(spec: Spec, settings: Settings) -> Iterator[Single]:
        with opener(spec, settings) as model:
            yield Single(model)

    monkeypatch.setattr(METHODS["torch"], "opener", open_single)
    rows = _rows(tmp_path, [("torch", "bf16")], ["two@2", "two"]).loc["torch"]
    assert rows.loc["two", "status"] == "ok", rows.loc["two", "reason"]
    assert rows.loc["two@2", "status"] == "skipped"
    assert rows.loc["two@2", "reason"] == "torch/bf16 answers one sequence at a time; use prompt sets without @N"
