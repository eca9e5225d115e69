"""The end of a run on the terminal, for good runs and odd ones."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from quantbench.tables.summary import run_summary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd

    from quantbench.core.record import Missing, Record

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "results")


def test_the_decision_comes_first_then_the_table_then_the_place(write: Write, full: list[Record], folder: str) -> None:
    write(full)
    lines = run_summary(folder, "run-1", 140)

    assert lines[0].startswith("Ship gguf/q4_k_m: ")
    assert lines[1].startswith("11 others: quantbench recommend --why; canary is an instrument check")
    assert lines.index("Measured: canary, prompts ten") > 0
    [row] = [line.split() for line in lines if line.startswith("gguf/q4_k_m ")]
    assert " ".join(row) == "gguf/q4_k_m 612 kB 4.90 653 (643 to 663) 4 ms 0.0420 ± 0.0008 95.0%"
    assert max(len(line) for line in lines if folder not in line) <= 100  # a path is not broken
    assert folder in "".join(lines[-2:])


def test_of_many_rows_the_front_the_control_and_what_was_named_are_shown(write: Write, full: list[Record], folder: str) -> None:
    """bf16 and fp16 are as large as f16 and further away, int8 and nf4-dq larger than GGUF types that are closer."""
    write(full)
    names = {line.split("  ")[0] for line in run_summary(folder, "run-1", 100) if re.match(r"(torch|gguf|bits\w+)/", line)}

    assert names == {
        "torch/fp32", "torch/fp32 (control)", "gguf/q2_k", "gguf/q3_k_m", "gguf/q4_k_m", "gguf/q5_k_m", "gguf/q6_k",
        "gguf/q8_0", "gguf/f16",
    }  # fmt: skip


def test_commands_that_are_named_read_these_results(
    write: Write, full: list[Record], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(full)
    (tmp_path / "the rest").mkdir()
    monkeypatch.chdir(tmp_path / "the rest")
    elsewhere = " ".join(run_summary(folder, "run-1", 100))
    monkeypatch.chdir(tmp_path.parent)
    below = " ".join(run_summary(folder, "run-1", 100))

    for command in ("recommend --why", "tables"):
        assert f"quantbench {command} --results={folder}" in elsewhere
        assert f"quantbench {command} --results={tmp_path.name}/results" in below


def test_columns_give_way_before_a_row_takes_two_lines(write: Write, record: Make, folder: str) -> None:
    write([record("torch/fp32"), *(record("prune/structured-25+int8", repeat=repeat) for repeat in range(2))])
    lines = run_summary(folder, "run-1", 100)

    assert max(len(line) for line in lines if folder not in line) <= 100  # a path is not broken
    assert sum(line.startswith("prune/structured-25+int8 (median of 2)") for line in lines) == 1
    heading = next(line for line in lines if line.startswith("Variant"))
    assert "Bits/weight" not in heading
    for kept in ("Weights", "Decode, tokens/s", "KLD"):
        assert kept in heading


def test_other_runs_are_left_out(write: Write, record: Make, folder: str) -> None:
    write([record("gguf/q8_0")], run_id="old")
    write([record("gguf/q6_k")], run_id="new", day=2)
    text = "\n".join(run_summary(folder, "new", 140))

    assert "gguf/q6_k" in text
    assert "gguf/q8_0" not in text


@pytest.mark.parametrize("brief", [True, False])
def test_what_failed_has_its_reason_and_what_was_skipped_is_counted(
    write: Write, record: Make, folder: str, brief: bool
) -> None:
    late = record("gguf/q8_0", status="timeout", reason="took too long")
    write([record(), late, record("torch/fp16", status="skipped", reason="no torch")])
    text = "\n".join(run_summary(folder, "run-1", 140, brief=brief))

    assert "2 of 3 not measured: 1 timeout, 1 skipped; reasons: quantbench tables measured" in text
    assert "- gguf/q8_0: timeout, took too long" in text
    assert "no torch" not in text
    assert ("Measured: canary" in text) is not brief


def test_a_reason_that_stands_for_many_rows_is_said_once(write: Write, record: Make, folder: str) -> None:
    names = ("torch/fp16", "torch/bf16", "gguf/q8_0", "gguf/q4_k_m")
    write([record(), *(record(name, status="error", reason="too large by far") for name in names)])
    text = "\n".join(run_summary(folder, "run-1", 200))

    assert text.count("too large by far") == 1
    assert "4 scenarios (" in text


@pytest.mark.parametrize("odd", ["all failed", "single", "nulls", "empty values", "control only"])
def test_odd_rows_never_raise(write: Write, record: Make, folder: str, missing: Callable[[str], Missing], odd: str) -> None:
    none = missing("not there")
    nulls = dict.fromkeys(("kld_mean", "kld_mean_se", "decode_tps", "decode_ratio", "weight_bytes", "ttft_s"), none)
    write(
        {
            "all failed": [record(status="error", reason=""), record("torch/fp32", status="oom", reason="killed")],
            "single": [record("torch/fp32")],
            "nulls": [record(**nulls)],
            "empty values": [record(kld_mean=0.0, decode_tps=0.0, weight_bytes=0, top1_agreement=0.0, ttft_s=0.0)],
            "control only": [record("torch/fp32", control=True)],
        }[odd]
    )

    assert "Measured: canary, prompts ten" in run_summary(folder, "run-1", 100)


def test_results_that_are_not_there_make_a_line(write: Write, record: Make, folder: str) -> None:
    assert "no results of table 'scenarios'" in " ".join(run_summary(folder, "run-1"))
    write([record()])
    assert "has no row of run other" in " ".join(run_summary(folder, "other"))


def test_a_corrupt_file_is_reported_and_left_out(write: Write, record: Make, folder: str, tmp_path: Path) -> None:
    write([record()])
    (tmp_path / "results" / "scenarios" / "run-1-00099.parquet").write_bytes(b"PAR1")
    text = " ".join(" ".join(run_summary(folder, "run-1", 100)).split())

    assert "run-1-00099.parquet cannot be read and is left out" in text
    assert "Ship gguf/q4_k_m" in text


def test_what_was_timed_beside_other_work_carries_a_sign(write: Write, record: Make, folder: str) -> None:
    rows = [record("torch/fp32"), record("gguf/q8_0", disturbed=True, disturbance="other processes took 48% of the CPU time")]
    write(rows)
    said = "\n".join(run_summary(folder, "run-1", 200))
    quiet, beside = (next(line for line in said.splitlines() if line.startswith(name)) for name in ("torch/fp32", "gguf/q8_0"))
    assert "~" not in quiet
    assert "~" in beside
    assert "~ measured beside other work" in said
