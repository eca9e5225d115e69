"""The commands one after another, in processes of their own, in a folder that holds nothing but a matrix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

MATRIX = """\
control = false
prompts = ["two"]
[methods]
stub = ["exact", "noisy"]
[conditions]
reference = "stub/exact"
output_tokens = 4
answer_tokens = 4
continuation_tokens = 8
"""


@pytest.fixture
def quantbench(tmp_path: Path, stub_path: Path, shared_cache: Path) -> Command:
    """Run ``quantbench ARGUMENTS`` in an empty folder with the stub methods installed."""
    (tmp_path / "matrix.toml").write_text(MATRIX)
    stubs = {"PYTHONPATH": str(stub_path), "STUB_UNWATCHED": "1", "STUB_WITHOUT_TORCH": "1"}
    environment = {**os.environ, **stubs, "QUANTBENCH_CACHE": str(shared_cache)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from quantbench.cli import main; main()", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_run_then_tables_then_recommend(quantbench: Command, tmp_path: Path) -> None:
    run = quantbench("run", "--matrix=matrix.toml", "--profile=quick", "--benchmark-json=out/here.json")

    assert run.returncode == 0, run.stdout + run.stderr
    assert pd.read_parquet(tmp_path / "results" / "scenarios").status.tolist() == ["ok", "ok"]
    assert len(json.loads((tmp_path / "out" / "here.json").read_text())["benchmarks"]) == 6
    tables = quantbench("tables", "precision", "--format=md")
    assert tables.returncode == 0, tables.stderr
    assert "stub/noisy" in tables.stdout
    pick = quantbench("recommend", "--memory=1GiB", "--max-kld=5")
    assert pick.returncode == 0, pick.stderr
    assert pick.stdout.startswith("Under 1 GiB ship stub/")
    none = quantbench("recommend", "--memory=1KiB")
    assert none.returncode == 4


def test_a_failed_scenario_is_exit_code_1_and_the_others_are_kept(quantbench: Command, tmp_path: Path) -> None:
    text = MATRIX.replace('"noisy"', '"error"')
    (tmp_path / "matrix.toml").write_text(text)

    run = quantbench("run", "--matrix=matrix.toml", "--profile=quick", "--engine=inline", "--no-probes")

    assert run.returncode == 1
    assert sorted(pd.read_parquet(tmp_path / "results" / "scenarios").status) == ["error", "ok"]


def test_bad_input_is_exit_code_2_and_one_sentence(quantbench: Command) -> None:
    run = quantbench("run", "--method=gguff")

    assert run.returncode == 2
    assert run.stderr.strip() == "quantbench: unknown method 'gguff'; did you mean 'gguf'?"
    assert run.stdout == ""


def test_no_results_is_exit_code_4(quantbench: Command) -> None:
    recommend = quantbench("recommend", "--memory", "1GiB")

    assert recommend.returncode == 4
    assert "run the benchmark first" in recommend.stderr
