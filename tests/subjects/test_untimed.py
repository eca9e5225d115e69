"""A model that says it runs as something else than what it stands for: compared and weighed, and timed nowhere."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from quantbench import load
from quantbench.core.machine import describe
from quantbench.core.scenario import PROFILES, Conditions, Scenario, Spec, Variant
from quantbench.methods import METHODS
from quantbench.planning.options import Plan
from quantbench.results.store import Run, Store
from quantbench.running.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from quantbench.methods import LoadedModel, Settings

WHY = "it runs decompressed, whose speed is another's; serve it"
TIMES = ("load_s", "ttft_s", "decode_tps", "prefill_tps", "e2e_s", "decode_tps_ratio", "energy_per_token_j", "decode_path")

EFFORT = replace(PROFILES["quick"], min_rounds=1, max_rounds=1, energy=False, besides=False)


@pytest.mark.usefixtures("artifacts")
def test_a_model_that_must_not_be_timed_has_all_but_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opener = METHODS["torch"].opener

    @contextmanager
    def open_untimed(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
        with opener(spec, settings) as model:
            model.untimed = WHY if spec.variant.precision == "bf16" else ""  # type: ignore[attr-defined, union-attr]
            yield model

    monkeypatch.setattr(METHODS["torch"], "opener", open_untimed)
    conditions = Conditions(output_tokens=4, answer_tokens=4, continuation_tokens=8, threads=1)
    scenarios = tuple(
        Scenario(model="canary", variant=Variant(method="torch", precision=each), prompts="two", conditions=conditions)
        for each in ("bf16", "fp16")
    )
    run = Run(machine=describe(), versions={}, command="", commit="", profile="quick", engine="inline")
    plan = Plan(scenarios=scenarios, effort=EFFORT, engine="inline")
    with Runner(plan, Store(str(tmp_path), run)) as runner:
        untimed, timed = (runner.measure(scenario) for scenario in scenarios)
    rows = load(str(tmp_path)).set_index("precision")
    known = [name for name in TIMES if name in rows.columns]
    assert {"load_s", "ttft_s", "decode_tps", "decode_path"} <= set(known)
    assert rows["status"].tolist() == ["ok", "ok"], (untimed.reason, timed.reason)
    assert pd.isna(rows.loc["bf16", known]).all()
    assert rows.loc["fp16", ["load_s", "ttft_s", "decode_tps", "decode_path"]].notna().all()
    assert rows[["kld_mean", "weight_bytes", "peak_rss_bytes", "artifact_bytes", "exact_match"]].notna().all(axis=None)
    assert untimed.values["decode_tps"].reason == WHY  # type: ignore[union-attr]
