"""The examples that people copy: their figures, and that they run as they stand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from quantbench import load
from quantbench.core.machine import Machine
from quantbench.core.record import Output, Record, Sample, Status
from quantbench.core.scenario import Scenario, Variant
from quantbench.results.store import Run, Store

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "bench" / "examples" / "read_results.py"
VARIANTS = {"torch/fp32": (400, 0.0), "torch/bf16": (200, 0.02), "gguf/q8_0": (110, 0.01), "gguf/q2_k": (30, 0.5)}
"""Bytes and mean KLD; bf16 is both larger and further away than q8_0."""


@pytest.fixture(scope="module")
def example() -> Any:
    """The example as a module."""
    spec = spec_from_file_location("read_results", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _record(name: str, *, control: bool = False, status: str = "ok") -> Record:
    method, _, precision = name.partition("/")
    size, kld = VARIANTS[name]
    answers = [
        Output(
            index=index, prompt="p", prompt_tokens=(1,), reference_tokens=(2, 3), variant_tokens=(2, 3 + index),
            reference_text="<b>", variant_text="\x1b[31m" if index else "<b>", exact_match=index == 0,
            first_divergence=1 if index else None, token_match=1 - index / 2, chrf=50.0, scored_tokens=2,
            kld=(kld * index, kld * (2 - index)), kld_mean=kld, top1_agreement=1.0, nll_mean=2.0,
        )
        for index in range(2)
    ]  # fmt: skip
    return Record(
        scenario=Scenario(
            model="canary", variant=Variant(method=method, precision=precision, control=control), prompts="ten"
        ),
        scenario_key="0" * 64,
        status=Status(status),
        values={"weight_bytes": size, "kld_mean": kld, "itl_s": 0.002, "decode_tps": 500.0} if status == "ok" else {},
        samples=tuple(Sample("gap", 0, index, value) for index, value in enumerate((0.001, 0.002, 0.004))),
        outputs=tuple(answers) if status == "ok" else (),
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An older run of one variant, then one of all, with a control and a failure."""
    root = str(tmp_path_factory.mktemp("stored"))
    machine = Machine(cpu="Example CPU", cpus=2, memory_bytes=2**33, isa="avx2", system="Linux x86_64")
    runs = {
        "z-old": [_record("gguf/q2_k")],
        "a-new": [*map(_record, VARIANTS), _record("torch/fp32", control=True), _record("torch/bf16", status="oom")],
    }
    for day, (run_id, records) in enumerate(runs.items(), start=1):
        run = Run(
            machine=machine, versions={}, command="", commit="", profile="quick", engine="inline", run_id=run_id,
            started_at=datetime(2026, 1, day, tzinfo=UTC),
        )  # fmt: skip
        store = Store(root, run)
        for number, record in enumerate(records):
            store.append(replace(record, repeat=number), instrument_check=True)
        store.finish(planned=len(records), finished=len(records), ok=1, interrupted=False)
    return root


@pytest.fixture(scope="module")
def rows(example: Any, results: str) -> pd.DataFrame:
    """What the example picks."""
    picked: pd.DataFrame = example.last_run(load(results))
    return picked


def test_the_last_run_is_picked_without_control_and_failures(rows: pd.DataFrame) -> None:
    assert set(rows["run_id"]) == {"a-new"}
    assert rows["variant"].tolist() == list(VARIANTS)


def test_the_front_is_what_nothing_beats(example: Any, rows: pd.DataFrame) -> None:
    front = example.pareto(rows)["variant"].tolist()
    beaten = {
        name
        for name, (size, kld) in VARIANTS.items()
        if any(other != (size, kld) and other[0] <= size and other[1] <= kld for other in VARIANTS.values())
    }
    assert beaten == {"torch/bf16"}
    assert front == ["gguf/q2_k", "gguf/q8_0", "torch/fp32"]


def test_latencies_are_of_the_raw_samples(example: Any, rows: pd.DataFrame, results: str) -> None:
    found = example.latencies(rows, load(results, "samples")).reset_index()
    assert found["variant"].tolist() == sorted(VARIANTS)
    assert found["samples"].tolist() == [3] * 4
    assert found["median_s"].tolist() == found["itl_s"].tolist() == [0.002] * 4
    assert found["p90_s"].tolist() == pytest.approx([0.0036] * 4)


def test_kld_by_prompt_and_by_position(example: Any, rows: pd.DataFrame, results: str) -> None:
    outputs = load(results, "outputs")
    by_prompt = example.kld_by_prompt(rows, outputs)
    assert by_prompt.shape == (4, 2)
    for name, (_, kld) in VARIANTS.items():
        assert by_prompt.loc[("canary", "ten", name)].tolist() == [kld, kld]
    by_position = example.kld_by_position(rows, outputs)
    assert by_position.loc[("canary", "gguf/q2_k"), "p50"] == pytest.approx(0.5)  # of 0, 1, 0.5 and 0.5


def test_differing_answers_are_shown_escaped(example: Any, rows: pd.DataFrame, results: str) -> None:
    found = example.first_differences(rows, load(results, "outputs"))
    assert set(found["index"]) == {1}
    assert set(found["variant_text"]) == {r"'\x1b[31m'"}


def test_it_runs_as_it_stands(results: str) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLE), results]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for part in ("gguf/q8_0", "torch/fp32", "KLD by prompt", "claimed_size_7b", "FP16"):
        assert part in done.stdout
    assert "z-old" not in done.stdout


def test_pytest_collects_no_example() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "bench/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert "bench/test_latency.py" in done.stdout
    assert "examples" not in done.stdout + done.stderr
