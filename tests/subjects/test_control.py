"""The control's row on the canary: nothing off its reference, and the rounding floor, which no other row has."""

from __future__ import annotations

import json
import math
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

    import pandas as pd

VARIANTS = (
    Variant(method="torch", precision="fp32", control=True), Variant(method="torch", precision="bf16"),
    Variant(method="gguf", precision="q8_0"), Variant(method="gguf", precision="q2_k"),
)  # fmt: skip

EFFORT = replace(PROFILES["quick"], untimed="only the quality counts here", energy=False, besides=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, users_cache: Path) -> pd.DataFrame:
    """Ten prompts' continuations of 16 tokens, by variant."""
    results = str(tmp_path_factory.mktemp("results"))
    conditions = Conditions(output_tokens=4, answer_tokens=4, continuation_tokens=16, threads=1, answered_prompts=1)
    scenarios = [Scenario(model="canary", variant=each, prompts="ten", conditions=conditions) for each in VARIANTS]
    run = Run(machine=describe(), versions={}, command="", commit="", profile="quick", engine="inline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(users_cache))
        plan = Plan(scenarios=tuple(scenarios), effort=EFFORT, engine="inline")
        with Runner(plan, Store(results, run)) as runner:
            for scenario in scenarios:
                runner.measure(scenario)
    frame = load(results)
    assert frame["status"].eq("ok").all(), frame["reason"].tolist()
    return frame.set_index("precision")


pytestmark = pytest.mark.usefixtures("artifacts")


def test_the_control_shares_every_token_with_its_reference(rows: pd.DataFrame) -> None:
    control = rows.loc["fp32"]
    assert control["ear"] == pytest.approx(1.0, abs=1e-6)
    assert control["ear_low"] <= control["ear"] <= control["ear_high"] <= 1
    assert control["kld_confident"] == 0


def test_fewer_bits_share_less_and_keep_pinskers_inequality(rows: pd.DataFrame) -> None:
    assert rows.loc[["fp32", "q8_0", "q2_k"], "ear"].is_monotonic_decreasing
    for row in rows.itertuples():
        assert 1 - math.sqrt(row.kld_mean / 2) - 1e-6 <= row.ear <= 1
        assert 0 < row.confidence_median < 1
    assert len(set(rows["confidence_median"])) == 1  # it is the reference's


def test_the_rounding_floor_stands_in_the_controls_row_alone(rows: pd.DataFrame) -> None:
    """It is not as far off as bf16, which rounds more often, yet by a figure of its own, and far below the lowest bits."""
    control = rows.loc["fp32"]
    assert rows.loc["bf16", "kld_mean"] / 50 < control["kld_floor"] < rows.loc["bf16", "kld_mean"]
    assert control["kld_floor"] < rows.loc["q2_k", "kld_mean"] / 100
    assert 0 < control["kld_floor_se"] < control["kld_floor"]
    assert rows.loc["q2_k", "ear"] < control["ear_floor"] < 1
    assert 0.9 < control["top1_floor"] <= 1
    for name in ("bf16", "q8_0", "q2_k"):
        reasons = json.loads(rows.loc[name, "null_reasons"])
        for column in ("kld_floor", "kld_floor_se", "top1_floor", "ear_floor"):
            assert reasons[column] == "the rounding floor is measured with the reference's control only: see its row"
