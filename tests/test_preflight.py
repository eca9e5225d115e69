"""What cannot fit is skipped with the arithmetic before anything is loaded, and what was predicted is in every row."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from quantbench.core.machine import describe
from quantbench.core.record import Missing, Record, Status
from quantbench.core.scenario import Conditions, Effort, Scenario, Variant
from quantbench.core.units import format_bytes
from quantbench.models import meta
from quantbench.models.architecture import AS_LLAMA
from quantbench.models.config import read_architecture
from quantbench.planning import planner
from quantbench.planning.options import Plan
from quantbench.planning.outlook import Outlooks
from quantbench.results.store import Run, Store, load
from quantbench.running.runner import Runner

if TYPE_CHECKING:
    from pathlib import Path

EFFORT = Effort(min_rounds=1, max_rounds=1, budget_s=0.01, energy=False, besides=False)
FP32_BYTES = 23_082_112  # 5,770,496 parameters in float32, and 128 bytes of rotary frequencies


def _scenario(precision: str = "fp32", model: str = "canary", **asked: str | int) -> Scenario:
    return Scenario(
        model=model,
        variant=Variant(method="torch", precision=precision),
        prompts="two",
        conditions=Conditions(**asked),  # type: ignore[arg-type]
    )


def _measured(scenario: Scenario, folder: Path) -> Record:
    run = Run(machine=describe(), versions={}, command="", commit="", profile="quick", engine="inline")
    plan = Plan(scenarios=(scenario,), effort=EFFORT, engine="inline", keep_jobs=folder / "jobs")
    with Runner(plan, Store(str(folder / "results"), run)) as runner:
        return runner.measure(scenario)


def test_what_cannot_fit_is_skipped_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "memory_limit", lambda: 10**7)
    record = _measured(_scenario(), tmp_path)
    assert record.status is Status.SKIPPED
    assert record.reason.startswith("torch/fp32 of canary takes 24.4 MB (weights")
    assert "(weights 23.1 MB + KV cache 393 kB + activations 877 kB) and" in record.reason
    assert record.reason.endswith("this machine has 10 MB; choose a smaller precision, or run where there is more memory")
    assert not (tmp_path / "jobs").exists()
    row = load(str(tmp_path / "results")).iloc[0]
    assert (row["status"], row["predicted_weight_bytes"]) == ("skipped", FP32_BYTES)


def test_a_reference_that_cannot_fit_costs_similarity_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "memory_limit", lambda: 15 * 10**6)
    record = _measured(_scenario("bf16"), tmp_path)
    assert record.status is Status.OK
    assert record.values["weight_bytes"] == 2 * 5_770_496 + 128
    missing = record.values["kld_mean"]
    assert isinstance(missing, Missing)
    assert missing.reason.startswith("the reference does not fit: torch/fp32 of canary takes")
    assert missing.reason.endswith("choose a smaller one with --reference, such as torch/bf16")


def test_a_dummy_that_cannot_fit_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(planner, "memory_limit", lambda: 24 * 2**30)
    record = _measured(_scenario("bf16", "dummy:llama-2-70b"), tmp_path)
    assert record.status is Status.SKIPPED
    assert "torch/bf16 of dummy:llama-2-70b takes 138 GB (weights 138 GB" in record.reason
    assert not list((tmp_path / "cache").glob("dummy/*"))


def test_a_context_that_torch_does_not_fill_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp allots its whole context; torch's cache grows with the prompt, and a text fills its chunks."""
    monkeypatch.setattr(planner, "memory_limit", lambda: 40 * 10**6)
    outlooks = Outlooks()
    wide = _scenario("fp32", context=1024)
    assert outlooks.by_name(wide).refusal == ""
    assert "activations 13.9 MB" in outlooks.by_name(replace(wide, prompts="text:a.txt")).refusal
    monkeypatch.setattr(planner, "memory_limit", lambda: 10**6)
    file = replace(wide, variant=Variant(method="gguf", precision="f32"))
    assert "KV cache 3.15 MB" in outlooks.by_name(file).refusal
    assert "KV cache 786 kB" in outlooks.by_name(replace(file, conditions=Conditions())).refusal


def test_an_outlook_is_the_plans_own() -> None:
    outlook = Outlooks().by_name(_scenario("bf16"))
    canary = read_architecture("canary")
    assert outlook.weight_bytes == 2 * canary.parameters + canary.buffer_bytes
    assert outlook.refusal == ""


def test_a_guess_refuses_nothing_that_its_bounds_allow_and_predicts_no_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose shapes had to be assumed is refused where even the least that it may take is too much."""
    body = {
        "model_type": "novel", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "vocab_size": 32000,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(body))
    monkeypatch.setattr(meta, "versions", lambda _: {})
    weights = read_architecture(str(tmp_path)).parameters * 4
    refused = {}
    for share in (0.99 * AS_LLAMA[0], 1.0, 2 * AS_LLAMA[1]):
        monkeypatch.setattr(planner, "memory_limit", lambda share=share: int(share * weights))
        outlook = Outlooks().by_name(_scenario(model=str(tmp_path)))
        assert isinstance(outlook.weight_bytes, Missing)
        assert "counted as a Llama" in outlook.weight_bytes.reason
        refused[share] = outlook.refusal
    assert [bool(each) for each in refused.values()] == [True, False, False]
    assert "counted as a Llama of these dimensions; its weights may take" in next(iter(refused.values()))


@pytest.mark.parametrize("model", ["lstm", "http://localhost:1/v1"])
def test_what_has_no_known_shapes_is_never_refused(model: str) -> None:
    outlook = Outlooks().by_name(_scenario(model=model))
    assert outlook.refusal == ""
    assert isinstance(outlook.weight_bytes, Missing)
    assert "language models with a known configuration" in outlook.weight_bytes.reason


def test_a_forecast_that_breaks_costs_nothing_but_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(planner, "forecast", broken)
    outlook = Outlooks().by_name(_scenario())
    assert outlook.weight_bytes == Missing("the forecast failed: ZeroDivisionError: by nothing")
    assert outlook.refusal == ""


def test_a_gpu_that_is_not_there_is_the_workers_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Outlooks().by_name(_scenario(device="cuda")).refusal == ""


def _outlook(prompts: str, batch: int = 1) -> str:
    return Outlooks().by_name(replace(_scenario(model="dummy:llama-2-7b"), prompts=prompts, batch=batch)).refusal


def test_lengths_and_batches_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token's keys and values of a 7B: 32 layers x 2 x 4096 float32 values."""
    weights, token = 26_953_667_072, 32 * 2 * 4096 * 4  # with its rotary frequencies
    monkeypatch.setattr(planner, "memory_limit", lambda: weights + 10**9)
    assert _outlook("two") == ""
    assert f"KV cache {format_bytes(token * (4064 + 32))}" in _outlook("tokens:4064")
    assert f"KV cache {format_bytes(token * (512 + 32) * 8)}" in _outlook("tokens:512", 8)
    assert f"KV cache {format_bytes(token * 64 * 32)}" in _outlook("two", 32)
