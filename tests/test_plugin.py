"""The plugin as its users see it: what pytest prints and returns, and what lies on disk afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

Run = Callable[..., pytest.RunResult]
Results = Callable[..., pd.DataFrame]


def test_one_row_per_planned_scenario_and_one_entry_per_phase(
    stub_run: Run, results: Results, pytester: pytest.Pytester
) -> None:
    run = stub_run("--benchmark-json=not/yet/there/out.json", control=True)

    run.assert_outcomes(passed=9)
    frame = results()
    assert sorted(frame.scenario_id) == ["canary/stub-exact-control/two", "canary/stub-exact/two", "canary/stub-noisy/two"]
    assert set(frame.status) == {"ok"}
    entries = json.loads(pytester.path.joinpath("not/yet/there/out.json").read_text())["benchmarks"]
    assert len(entries) == 9
    assert {entry["group"] for entry in entries} == {"canary two prefill", "canary two decode", "canary two load"}
    assert {entry["params"]["quantbench_scenario"] for entry in entries} == set(frame.scenario_id)


def test_the_json_holds_the_workers_samples_and_machine(stub_run: Run, results: Results, pytester: pytest.Pytester) -> None:
    stub_run("--benchmark-json=out.json", "-k", "decode", precisions="slow")

    body = json.loads(pytester.path.joinpath("out.json").read_text())
    (entry,) = body["benchmarks"]
    gaps = results("samples").query("phase == 'gap'").groupby("round").value_s.mean()
    assert entry["stats"]["data"] == pytest.approx(gaps.tolist())
    assert entry["stats"]["rounds"] == len(gaps)
    assert "0x" not in json.dumps(entry["options"])
    assert entry["extra_info"]["scenario_key"] == results().scenario_key[0]
    assert body["machine_info"]["quantbench"]["fingerprint"] == results().machine[0]
    json.dumps(body, allow_nan=False)


@pytest.mark.parametrize(
    ("precision", "status", "words"),
    [
        ("killed", "crashed", "SIGKILL"),
        ("segfault", "crashed", "SIGSEGV"),
        ("error", "error", "the stub was told to fail"),
        ("memory", "oom", "run out of memory"),
    ],
)
def test_a_failing_variant_fails_alone(precision: str, status: str, words: str, stub_run: Run, results: Results) -> None:
    run = stub_run(precisions=f"exact,{precision},noisy")

    run.assert_outcomes(passed=6, failed=3)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    frame = results().set_index("precision")
    assert frame.status.to_dict() == {"exact": "ok", "noisy": "ok", precision: status}
    assert words in frame.reason[precision]
    assert pd.isna(frame.kld_mean[precision])


def test_a_metric_from_elsewhere_is_a_column_and_its_failure_costs_its_own_row_only(stub_run: Run, results: Results) -> None:
    """A new metric is one file, ours or anybody's."""
    stub_run(precisions="exact,odd,noisy")

    frame = results().set_index("precision")
    assert frame.status.to_dict() == {"exact": "ok", "noisy": "ok", "odd": "error"}
    assert frame.reason["odd"] == "a metric failed: ValueError: too odd for this metric"
    assert frame.stub_answers[["exact", "noisy"]].tolist() == [2, 2]


def test_an_exception_keeps_its_traceback_in_the_row(stub_run: Run, results: Results) -> None:
    run = stub_run(precisions="error")

    assert "RuntimeError" in results().traceback[0]
    run.stdout.no_fnmatch_line("*Traceback*")


def test_a_refusal_is_a_skip_with_the_reason(stub_run: Run, results: Results) -> None:
    run = stub_run("-rs", precisions="exact,refused")

    run.assert_outcomes(passed=3, skipped=3)
    assert run.ret == pytest.ExitCode.OK
    run.stdout.fnmatch_lines(["*the stub cannot run here; use another precision*"])
    assert results().set_index("precision").status["refused"] == "skipped"


def test_a_missing_package_is_a_skip_that_names_the_pip_line(stub_run: Run, results: Results) -> None:
    stub_run("--quantbench-method=absent")

    frame = results()
    assert frame.status.tolist() == ["skipped"]
    assert "no_such_module" in frame.reason[0]
    assert "pip install no_such_module" in frame.reason[0]


def test_a_variant_that_takes_too_long_is_a_timeout_and_the_rest_goes_on(stub_run: Run, results: Results) -> None:
    run = stub_run("--quantbench-timeout=5", precisions="exact,stuck,noisy")

    run.assert_outcomes(passed=6, failed=3)
    frame = results().set_index("precision")
    assert frame.status.to_dict() == {"exact": "ok", "noisy": "ok", "stuck": "timeout"}
    assert "5 s" in frame.reason["stuck"]


def test_a_worker_killed_in_the_middle_keeps_the_prompt_sets_it_finished(
    stub_run: Run, results: Results, pytester: pytest.Pytester
) -> None:
    """One job, two prompt sets; the worker dies while it times the second."""
    pytester.path.joinpath("long.txt").write_text("word " * 60 + "\n")

    stub_run("--quantbench-prompts=two,long.txt", precisions="exact,late,noisy")

    status = results().set_index("scenario_id").status.to_dict()
    assert status.pop("canary/stub-late/long") == "crashed"
    assert set(status.values()) == {"ok"}
    assert len(status) == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("word " * 2000, "more than the context of 1024 tokens; shorten the prompt"),
        ("\n# nothing here\n", "has no prompts; write one prompt a line"),
    ],
)
def test_prompts_that_cannot_be_used_are_a_row_with_the_reason(
    text: str, words: str, stub_run: Run, results: Results, pytester: pytest.Pytester
) -> None:
    pytester.path.joinpath("odd.txt").write_text(text)

    stub_run("--quantbench-prompts=odd.txt,two", precisions="exact")

    frame = results().set_index("prompts")
    assert frame.status.to_dict() == {"odd.txt": "error", "two": "ok"}
    assert words in frame.reason["odd.txt"]


def test_a_checkpoint_that_cannot_be_used_is_a_row_with_the_reason(
    stub_run: Run, results: Results, pytester: pytest.Pytester
) -> None:
    pytester.mkdir("broken").joinpath("pytorch_model.bin").write_bytes(b"")

    stub_run("--quantbench-model=./broken,canary", precisions="exact")

    frame = results().set_index("model")
    assert frame.status.to_dict() == {"./broken": "error", "canary": "ok"}
    assert "has no config.json" in frame.reason["./broken"]


def test_selection_by_k_measures_and_stores_only_what_is_selected(stub_run: Run, results: Results) -> None:
    stub_run("-k", "noisy and decode")

    assert results().scenario_id.tolist() == ["canary/stub-noisy/two"]
    assert results("runs").planned.tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quantbench-method=bitsandbyte"], "unknown method 'bitsandbyte'; did you mean 'bitsandbytes'?"),
        (["--quantbench-precision=q4_k"], "unknown precision 'q4_k'; did you mean 'q4_k_"),
        (["--quantbench-model=canari"], "unknown model 'canari'; did you mean 'canary'?"),
        (["--quantbench-prompts=tenn"], "unknown prompt set 'tenn'; did you mean 'ten'?"),
        (["--quantbench-engine=proces"], "unknown engine 'proces'; did you mean 'process'?"),
        (["--quantbench-profile=fast"], "unknown profile 'fast'"),
        (["--quantbench-device=tpu"], "device 'tpu' is not known; use cpu, cuda or cuda:N"),
        (["--quantbench-device=cuda"], "device 'cuda' was asked for and nvidia-smi lists no GPU"),
        (["--quantbench-matrix=none.toml"], "does not exist"),
        (["--quantbench-timeout=0"], "not positive"),
        (["--quantbench-results=matrix.toml/below"], "results cannot be written"),
    ],
)
def test_bad_input_is_one_sentence_and_a_usage_error(arguments: list[str], words: str, stub_run: Run) -> None:
    run = stub_run(*arguments)

    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert words in run.stdout.str() + run.stderr.str()
    assert "Traceback" not in run.stdout.str() + run.stderr.str()


def test_benchmark_disable_still_measures_and_stores(stub_run: Run, results: Results) -> None:
    run = stub_run("--benchmark-disable")

    run.assert_outcomes(passed=6)
    assert len(results()) == 2


def test_without_pytest_benchmark_the_rows_are_still_written(stub_run: Run, results: Results) -> None:
    run = stub_run("-p", "no:benchmark")

    run.assert_outcomes(passed=6)
    assert len(results()) == 2


def test_save_and_compare_work_as_pytest_benchmark_documents_them(stub_run: Run) -> None:
    stub_run("--benchmark-save=first", "-k", "decode")
    run = stub_run("--benchmark-compare=0001", "-k", "decode", "--benchmark-compare-fail=median:10000%")

    assert run.ret == pytest.ExitCode.OK
    run.stdout.fnmatch_lines(["*0001_first*"])


def test_collect_only_measures_nothing(stub_run: Run, pytester: pytest.Pytester) -> None:
    run = stub_run("--collect-only", "-q")

    run.stdout.fnmatch_lines(["test_latency.py::test_prefill[[]canary/stub-noisy/two[]]"])
    assert not pytester.path.joinpath("results").exists()


def test_the_summary_names_the_results_and_every_failure(stub_run: Run) -> None:
    run = stub_run(precisions="exact,noisy,error")

    text = run.stdout.str()
    assert "= quantbench =" in text
    assert "the stub was told to fail" in text
    assert "results" in text


def test_a_job_can_be_run_again_by_hand(stub_run: Run, pytester: pytest.Pytester) -> None:
    stub_run("--quantbench-keep-jobs=jobs", precisions="exact")
    (job,) = pytester.path.joinpath("jobs").glob("*-stub-exact-measure")
    trace = job / "trace-0.json"
    trace.unlink()

    again = subprocess.run([sys.executable, "-m", "quantbench.worker", str(job)], check=False, capture_output=True, text=True)

    assert again.returncode == 0, again.stderr
    assert json.loads(trace.read_text())["facts"]["kernel"] == "stub"


def test_the_inline_engine_measures_in_this_process(stub_run: Run, results: Results) -> None:
    run = stub_run("--quantbench-engine=inline", precisions="exact,noisy")

    run.assert_outcomes(passed=6)
    assert set(results().status) == {"ok"}


def test_ctrl_c_keeps_finished_rows_and_ends_with_pytests_code(
    stub_run: Run, stub_path: Path, shared_cache: Path, pytester: pytest.Pytester, results: Results
) -> None:
    stub_run("--collect-only", "-q", precisions="exact,stuck")
    command = [
        sys.executable, "-m", "pytest", "--quantbench-matrix=matrix.toml", "--quantbench-profile=quick",
        "-p", "no:cacheprovider",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(stub_path), "QUANTBENCH_CACHE": str(shared_cache)}
    process = subprocess.Popen(
        command, cwd=pytester.path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # a suite that runs in the background ignores SIGINT, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads are about
    )  # fmt: skip
    finished = pytester.path / "results" / "scenarios"
    for _ in range(600):
        if list(finished.rglob("*.parquet")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == pytest.ExitCode.INTERRUPTED, output.decode()
    assert results().precision.tolist() == ["exact"]
    assert results("runs").interrupted.tolist() == [True]
