"""``quantbench compare``: sides from folders, runs, files and pytest-benchmark's report; exit codes of a gate."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from quantbench.cli.app import app
from quantbench.results.schema import schema

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

VARIANTS = ("torch-bf16", "gguf-q8_0", "gguf-q4_k_m", "bitsandbytes-nf4")
ITL_S = 0.004


def _write(root: Path, run_id: str, day: int, *, processes: int = 1, **changes: Any) -> None:
    """A run whose figures are equal in all processes but for a hair, so that every spread is known and small."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for process in range(processes):
        for place, variant in enumerate(VARIANTS):
            method, _, precision = variant.partition("-")
            own = {name: value[variant] for name, value in changes.items() if isinstance(value, dict) and variant in value}
            itl_s = own.pop("itl_s", ITL_S) * (1 + 0.002 * ((7 * process + 3 * place + day) % 5 - 2))
            rows.append({
                "run_id": run_id, "started_at": datetime(2026, 1, day, tzinfo=UTC), "repeat": process,
                "scenario_id": f"canary/{variant}/ten", "scenario_key": "k", "model": "canary", "method": method,
                "precision": precision, "prompts": "ten", "status": "ok", "schema_version": 1, "machine": "m", "cpu": "a CPU",
                "kernel": "aten", "itl_s": itl_s, "itl_ratio": 0.008 / itl_s, "kld_mean": 0.02, "weight_bytes": 4000,
                "versions": "{}", **own,
            })  # fmt: skip
    folder = root / "scenarios" / f"date=2026-01-{day:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema("scenarios")), folder / f"{run_id}-0.parquet")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments])


def test_equal_runs_have_no_regression(tmp_path: Path) -> None:
    for number, name in enumerate(("before", "after"), start=1):
        _write(tmp_path / name, name, number, processes=5)
    result = _run(str(tmp_path / "before"), str(tmp_path / "after"))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("No regression; 12 same; among the same speeds a change of ")
    assert "12 figures stayed the same and are not shown; --all shows them" in " ".join(result.stdout.split())


def test_one_process_a_side_is_not_enough_and_says_how_many_more(tmp_path: Path) -> None:
    for number, name in enumerate(("before", "after"), start=1):
        _write(tmp_path / name, name, number)
    result = _run(str(tmp_path / "before"), str(tmp_path / "after"))
    assert result.exit_code == 4
    sentence = " ".join(result.stdout.split())
    assert "4 figures: the rule needs 5 processes per side: 4 more of the baseline and 4 more of the" in sentence


def test_a_slowdown_and_a_worse_quantization_are_regressions(tmp_path: Path) -> None:
    _write(tmp_path, "before", 1, processes=5)
    _write(tmp_path, "slow", 2, processes=10, itl_s={"gguf-q8_0": ITL_S * 1.2})
    _write(tmp_path, "worse", 3, kld_mean={"bitsandbytes-nf4": 0.05})
    slow = _run("before", "slow", "--results", str(tmp_path))
    assert slow.exit_code == 3
    assert slow.stdout.startswith("Regression: canary/gguf-q8_0/ten decode -16.")
    worse = _run("before", "worse", "--results", str(tmp_path))
    assert worse.exit_code == 3
    assert "Regression: canary/bitsandbytes-nf4/ten kld_mean +150.0%" in " ".join(worse.stdout.split())


def test_a_second_measurement_decides_what_was_flagged(tmp_path: Path) -> None:
    _write(tmp_path, "before", 1, processes=5)
    _write(tmp_path, "slow", 2, processes=5, itl_s={"gguf-q8_0": ITL_S * 1.2})
    _write(tmp_path, "again", 3, processes=5, itl_s={"gguf-q8_0": ITL_S * 1.2})
    _write(tmp_path, "fine", 4, processes=5)
    sides = ("before", "slow", "--results", str(tmp_path))
    assert _run(*sides).exit_code == 4
    assert _run(*sides, "--again", "again").exit_code == 3
    assert _run(*sides, "--again", "fine").exit_code == 0


def test_a_folder_is_its_last_run_or_a_window_of_them(tmp_path: Path) -> None:
    for day in range(1, 8):
        _write(tmp_path, f"night-{day}", day)
    body = json.loads(_run(str(tmp_path), str(tmp_path), "--window", "5", "--format", "json").stdout)
    assert body["candidate_runs"] == ["night-7"]
    assert body["baseline_runs"] == [f"night-{day}" for day in range(2, 7)]
    assert {tuple(each["processes"]) for each in body["entries"]} == {(5, 1)}
    alone = _run(str(tmp_path), "night-1,night-2,night-3,night-4,night-5,night-6,night-7", "--results", str(tmp_path))
    assert alone.exit_code == 4
    assert "holds no run but the one compared" in " ".join(alone.stderr.split())


def test_parquet_files_are_sides_too(tmp_path: Path) -> None:
    _write(tmp_path, "a", 1)
    (path,) = tmp_path.rglob("*.parquet")
    body = json.loads(_run(str(path), str(path), "--format", "json").stdout)
    assert body["counts"] == {"better": 0, "worse": 0, "same": 8, "insufficient data": 4, "incomparable": 0}


def _report(path: Path, itl_s: float, processes: int) -> Path:
    """A report as --benchmark-json writes it: two tests a scenario, each with the same extra_info."""
    tests = [
        {
            "name": f"{test}[canary/gguf-q8_0/ten{f'#{process + 1}' if process else ''}]",
            "extra_info": {
                "scenario_id": "canary/gguf-q8_0/ten", "scenario_key": "k", "status": "ok", "weight_bytes": 4000,
                "itl_s": itl_s * (1 + 0.002 * process), "itl_ratio": 0.008 / itl_s / (1 + 0.001 * process),
            },
        }
        for process in range(processes)
        for test in ("test_decode", "test_prefill")
    ]  # fmt: skip
    facts = {"quantbench": {"fingerprint": "m", "cpu": "a CPU"}}
    others = [{"name": "somebody's own", "extra_info": {}}]
    path.write_text(json.dumps({"machine_info": facts, "datetime": path.stem, "benchmarks": [*tests, *others]}))
    return path


def test_reports_of_pytest_benchmark_are_sides_too(tmp_path: Path) -> None:
    before, after = _report(tmp_path / "before.json", ITL_S, 5), _report(tmp_path / "after.json", ITL_S * 1.3, 10)
    result = _run(str(before), str(after), "--format", "json")
    assert result.exit_code == 3
    (worse,) = [each for each in json.loads(result.stdout)["entries"] if each["verdict"] == "worse"]
    assert (worse["scenario_id"], worse["metric"], worse["processes"]) == ("canary/gguf-q8_0/ten", "decode", [5, 5])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothere", "a"], 2, "no run 'a' in"),
        (["before", ""], 2, "'' does not exist; give a results folder"),
        (["before", ","], 2, "',' does not exist; give a results folder"),
        (["before", "runs.parquet"], 4, "it is not a file of this table"),
        (["./nowhere", "a"], 2, "no run 'a' in"),
        (["before", "nothing.json"], 2, "'nothing.json' does not exist; give a results folder, a file, or the id of a run"),
        (["before", "before", "--window", "0"], 2, "--window 0 holds no run"),
        (["before", "before", "--threshold", "decode"], 2, "threshold 'decode' is not METRIC=PCT"),
        (["before", "before", "--threshold", "dekode=3"], 2, "unknown figure or column with a direction 'dekode'"),
        (["before", "bad.json"], 4, "is not a report of pytest-benchmark"),
        (["before", "empty.json"], 4, "holds no scenario of quantbench"),
        (["before", "bad.parquet"], 4, "cannot be read and is left out"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "results", "before", 1)
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "empty.json").write_text(json.dumps({"benchmarks": []}))
    (tmp_path / "bad.parquet").write_text("no parquet")
    pd.DataFrame({"scenario_id": ["a"], "status": ["ok"]}).to_parquet(tmp_path / "runs.parquet")
    result = _run(*arguments)
    assert result.exit_code == code, result.output
    assert says in " ".join(result.stderr.split())


def test_a_file_that_was_cut_short_is_one_sentence_and_no_python(tmp_path: Path) -> None:
    _write(tmp_path, "before", 1)
    _write(tmp_path, "after", 2)
    (tmp_path / "scenarios" / "date=2026-01-02" / "cut-0.parquet").write_bytes(b"PAR1")
    result = _run("before", "after", "--results", str(tmp_path))
    assert result.exit_code == 4
    said = " ".join(result.stderr.split())
    assert said.startswith("quantbench: ")
    assert said.count("cut-0.parquet cannot be read and is left out") == 1
    assert "UserWarning" not in said


@pytest.mark.parametrize("form", ["md", "junit", "text"])
def test_every_format_names_what_became_worse(form: str, tmp_path: Path) -> None:
    _write(tmp_path, "before", 1)
    _write(tmp_path, "worse", 2, kld_mean={"gguf-q8_0": 0.05})
    result = _run("before", "worse", "--results", str(tmp_path), "--format", form)
    assert result.exit_code == 3
    assert "canary/gguf-q8\\_0/ten" in result.stdout or "canary/gguf-q8_0/ten" in result.stdout
    assert "+150.0%" in result.stdout or "1.5" in result.stdout
