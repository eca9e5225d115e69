"""The plugin as its users see it: what pytest prints and returns, and what lies on disk afterwards.

A run takes seconds, most of them for imports; so there are few, and many tests look at each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

OPTIONS = ("--quantbench-profile=quick", "-p", "no:cacheprovider")
SUITE = {"latency": "test_decode, test_prefill", "load": "test_load", "score": "test_score"}
ONE_AFTER_ANOTHER = """
import contextlib, io, json, sys
import pytest
ends = {}
for name, arguments in json.load(sys.stdin).items():
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        import time; t=time.time(); code = pytest.main(arguments); print(name, time.time()-t, file=open("/tmp/w/suite/times","a"))
    ends[name] = int(code), out.getvalue()
json.dump(ends, sys.stdout)
"""

Started = Mapping[str, Future["Ran"]]


@dataclass(frozen=True)
class Ran:
    """A run of pytest that is over: where it was, what it returned and what it said."""

    folder: Path
    end: pytest.RunResult
    results: str = "results"

    def table(self, name: str = "scenarios") -> pd.DataFrame:
        """What it stored, by plain pandas, as an analyst would read it."""
        return pd.read_parquet(self.folder / self.results / name)


def plan(folder: Path, precisions: str, *, control: bool = False, methods: str = "", matrix: str = "matrix.toml") -> None:
    """Write the shipped benchmarks, and a matrix of the stub's precisions with the stub as the reference."""
    for name, tests in SUITE.items():
        (folder / f"test_{name}.py").write_text(f"from quantbench.suite.test_{name} import {tests}\n")
    (folder / matrix).write_text(
        f'control = {str(control).lower()}\nprompts = ["two"]\n[methods]\nstub = {precisions.split(",")!r}\n{methods}\n'
        '[conditions]\nreference = "stub/exact"\noutput_tokens = 4\nanswer_tokens = 4\ncontinuation_tokens = 8\n'
    )


def environment(folder: Path, stub_path: Path) -> dict[str, str]:
    """Variables for a process that knows the stub methods and has a cache in ``folder``."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    return {**kept, "PYTHONPATH": str(stub_path), "QUANTBENCH_CACHE": str(folder / "cache")}


def run(folder: Path, stub_path: Path, *arguments: str) -> Ran:
    """Run pytest on the shipped benchmarks, in a process of its own."""
    command = [sys.executable, "-m", "pytest", "--quantbench-matrix=matrix.toml", *OPTIONS, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder, stub_path), capture_output=True, text=True, check=False
    )
    return Ran(folder, pytest.RunResult(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), 0.0))


def run_sound(folder: Path, stub_path: Path) -> Ran:
    """Everything goes well but for one probe: each variant twice, with prompts and with a text."""
    plan(folder, "exact,noisy", control=True, methods='fatal = ["save"]')
    lines = (f"The function number {number} returns the value {number + 1}, or None.\n" for number in range(120))
    (folder / "words.txt").write_text("".join(lines))
    return run(
        folder, stub_path, "--quantbench-repeats=2", "--quantbench-prompts=two,text:words.txt", "--quantbench-keep-jobs=jobs",
        "--benchmark-json=not/yet/there/out.json", "--benchmark-save=first",
    )  # fmt: skip


def run_failing(folder: Path, stub_path: Path) -> Ran:
    """Everything that can go wrong, one each."""
    bad = "killed,segfault,error,memory,refused,odd,late,stuck"
    plan(folder, f"exact,{bad},noisy", methods='absent = ["w4"]')
    (folder / "broken").mkdir()
    (folder / "broken" / "pytorch_model.bin").write_bytes(b"")
    (folder / "long.txt").write_text("word " * 60 + "\n")
    (folder / "odd.txt").write_text("word " * 2000)
    (folder / "empty.txt").write_text("\n# nothing here\n")
    return run(
        folder, stub_path, "--quantbench-model=./broken,canary", "--quantbench-prompts=two,long.txt,odd.txt,empty.txt",
        "-k", "exact or canary and (two or long)", "--quantbench-timeout=5", "--quantbench-no-probes",
    )  # fmt: skip


@pytest.fixture(scope="module")
def started(stub_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """The two long runs, at once."""
    with ThreadPoolExecutor() as pool:
        yield {each.__name__: pool.submit(each, tmp_path_factory.mktemp("run"), stub_path) for each in (run_sound, run_failing)}


@pytest.fixture(scope="module")
def sound(started: Started) -> Ran:
    """A run that goes well."""
    return started[run_sound.__name__].result()


@pytest.fixture(scope="module")
def failing(started: Started) -> Ran:
    """A run in which everything goes wrong that can."""
    return started[run_failing.__name__].result()


BAD_INPUT = {
    "--quantbench-method=bitsandbyte": "unknown method 'bitsandbyte'; did you mean 'bitsandbytes'?",
    "--quantbench-precision=q4_k": "unknown precision 'q4_k'; did you mean 'q4_k_",
    "--quantbench-model=canari": "unknown model 'canari'; did you mean 'canary'?",
    "--quantbench-prompts=tenn": "unknown prompt set 'tenn'; did you mean 'ten'?",
    "--quantbench-engine=proces": "unknown engine 'proces'; did you mean 'process'?",
    "--quantbench-profile=fast": "unknown profile 'fast'",
    "--quantbench-device=tpu": "device 'tpu' is not known; use cpu, cuda or cuda:N",
    "--quantbench-device=cuda": "device 'cuda' was asked for and nvidia-smi lists no GPU",
    "--quantbench-matrix=none.toml": "does not exist",
    "--quantbench-timeout=0": "not positive",
    "--quantbench-repeats=0": "--repeats 0 measures nothing; ask for at least 1",
    "--quantbench-results=matrix.toml/below": "results cannot be written",
}
INLINE = {
    "selected": ("-k", "noisy and decode", "--benchmark-compare=0001", "--benchmark-compare-fail=median:10000%"),
    "disabled": ("--benchmark-disable", "-k", "not refused"),
    "without": ("-p", "no:benchmark", "-rs"),
}


@pytest.fixture(scope="module")
def short(sound: Ran, stub_path: Path) -> Mapping[str, Ran]:
    """Runs that end soon or start no process, one after another in one process, where ``sound`` was."""
    plan(sound.folder, "exact,noisy,refused", matrix="short.toml")
    common = ("--quantbench-matrix=short.toml", *OPTIONS)
    runs = {
        **{name: (*common, *each, f"--quantbench-results={name}", "--quantbench-engine=inline") for name, each in INLINE.items()},
        **{each: (*common, each) for each in BAD_INPUT},
        "listed": (*common, "--collect-only", "-q", "--quantbench-results=listed"),
    }
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER], cwd=sound.folder, env=environment(sound.folder, stub_path),
        input=json.dumps(runs), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {
        name: Ran(sound.folder, pytest.RunResult(code, text.splitlines(), [], 0.0), results=name)
        for name, (code, text) in json.loads(done.stdout).items()
    }


NOT_ANSWERED = "a text is scored and not answered; name a prompt set such as 'ten' besides"
VARIANTS = ("stub-exact", "stub-exact-control", "stub-noisy", "fatal-save")


class TestARunThatGoesWell:
    def test_there_is_one_row_per_planned_scenario_and_repeat(self, sound: Ran) -> None:
        sound.end.assert_outcomes(passed=len(VARIANTS) * (3 + 2) * 2)
        assert sound.end.ret == pytest.ExitCode.OK
        frame = sound.table()
        planned = {f"canary/{variant}/{prompts}" for variant, prompts in product(VARIANTS, ("two", "text:words"))}
        assert sorted(zip(frame.scenario_id, frame.repeat, strict=True)) == sorted(product(planned, (0, 1)))
        assert set(frame.status) == {"ok"}
        assert sound.table("runs").planned.tolist() == [len(frame)]

    def test_there_is_one_entry_per_phase_scenario_and_repeat(self, sound: Ran) -> None:
        entries = _entries(sound)
        phases = {"two": ("prefill", "decode", "load"), "text:words": ("score", "load")}
        assert sorted((entry["group"], entry["params"]["quantbench_scenario"]) for entry in entries) == sorted(
            (f"canary {prompts} {phase}", f"canary/{variant}/{prompts}{repeat}")
            for prompts, variant, repeat in product(phases, VARIANTS, ("", "#2"))
            for phase in phases[prompts]
        )

    def test_the_json_holds_the_workers_samples_and_machine(self, sound: Ran) -> None:
        rows = sound.table().set_index(["scenario_id", "repeat"])
        gaps = sound.table("samples").query("phase == 'gap' and scenario_id == 'canary/stub-noisy/two'")
        for repeat, name in enumerate(("test_decode[canary/stub-noisy/two]", "test_decode[canary/stub-noisy/two#2]")):
            (entry,) = (entry for entry in _entries(sound) if entry["name"] == name)
            by_round = gaps[gaps.repeat == repeat].groupby("round").value_s.mean()
            assert entry["stats"]["data"] == pytest.approx(by_round.tolist())
            assert entry["stats"]["rounds"] == len(by_round)
            assert "0x" not in json.dumps(entry["options"])
            assert entry["extra_info"]["scenario_key"] == rows.scenario_key["canary/stub-noisy/two", repeat]
        body = json.loads(sound.folder.joinpath("not/yet/there/out.json").read_text())
        assert body["machine_info"]["quantbench"]["fingerprint"] == rows.machine.iloc[0]
        json.dumps(body, allow_nan=False)

    def test_repeats_have_equal_keys_and_processes_of_their_own_all_of_one_before_the_next(self, sound: Ran) -> None:
        frame = sound.table()
        assert (frame.groupby("scenario_id").scenario_key.nunique() == 1).all()
        assert frame.scenario_key.nunique() == len(frame) / 2
        jobs = [path.name.split("-", 1)[1] for path in sorted(sound.folder.glob("jobs/*-measure"))]
        once = [f"{variant}-measure" for variant in VARIANTS]
        assert sorted(jobs[: len(once)]) == sorted(once)
        assert jobs[len(once) :] == jobs[: len(once)]

    def test_a_text_is_scored_and_neither_answered_nor_timed_token_by_token(self, sound: Ran) -> None:
        frame = sound.table().query("prompts == 'text:words.txt'")
        assert len(frame) == 2 * len(VARIANTS)
        assert frame[["prefill_s", "decode_tps", "ttft_s", "exact_match"]].isna().all(axis=None)
        for reasons in map(json.loads, frame.null_reasons):
            assert {reasons[name] for name in ("prefill_s", "decode_tps", "ttft_s")} == {NOT_ANSWERED}
            assert "exact_match" in reasons
        assert frame.ppl.notna().all()
        assert (frame.query("precision == 'noisy'").kld_mean > 0).all()
        assert set(sound.table("outputs").scenario_id) == {f"canary/{variant}/two" for variant in VARIANTS}
        (entry,) = (entry for entry in _entries(sound) if entry["name"] == "test_score[canary/stub-noisy/text:words]")
        trace = json.loads((min(sound.folder.glob("jobs/*-stub-noisy-measure")) / "trace-1.json").read_text())
        assert len(trace["score_s"]) > 1
        assert entry["stats"]["data"] == pytest.approx(trace["score_s"])

    def test_a_probe_that_crashes_costs_itself_and_not_the_row_and_is_tried_again(self, sound: Ran) -> None:
        frame = sound.table().query("prompts == 'two' and not control").set_index(["method", "precision", "repeat"])
        assert set(frame.runs_on_cpu) == {True}
        for repeat in (0, 1):
            reason = json.loads(frame.null_reasons["fatal", "save", repeat])["saves_and_reloads"]
            assert reason.startswith("the probe process ended: the worker was ended by SIGSEGV")
            assert not frame.saves_and_reloads["stub", "exact", repeat]
            notes = json.loads(frame.capability_notes["stub", "exact", repeat])
            assert "no file that can be loaded safely" in notes["save_reload"]
        probes = sorted(path.name.split("-", 1)[1] for path in sound.folder.glob("jobs/*-probe"))
        assert probes == ["fatal-save-probe", "fatal-save-probe", "stub-exact-probe", "stub-noisy-probe"]

    def test_a_job_can_be_run_again_by_hand(self, sound: Ran, stub_path: Path) -> None:
        job = min(sound.folder.glob("jobs/*-stub-exact-measure"))
        trace = job / "trace-0.json"
        trace.unlink()

        command = [sys.executable, "-m", "quantbench.worker", str(job)]
        again = subprocess.run(
            command, env=environment(sound.folder, stub_path), capture_output=True, text=True, check=False
        )

        assert again.returncode == 0, again.stderr
        assert json.loads(trace.read_text())["facts"]["kernel"] == "stub"


GOOD = [("canary", precision, prompts) for precision in ("exact", "noisy") for prompts in ("two", "long.txt")]


class TestWhatFailsFailsAlone:
    def test_statuses_become_outcomes_and_the_good_rows_are_there(self, failing: Ran) -> None:
        frame = _by_variant(failing)
        assert set(frame.status[GOOD]) == {"ok"}
        assert failing.end.ret == pytest.ExitCode.TESTS_FAILED
        counts = frame.status.value_counts()
        assert (counts["ok"], counts["skipped"]) == (5, 4)  # late has its first prompt set
        failing.end.assert_outcomes(passed=3 * 5, skipped=3 * 4, failed=3 * (len(frame) - 9))
        assert len(frame) == 11 * 2 + 2 + 4

    @pytest.mark.parametrize(
        ("precision", "status", "words"),
        [
            ("killed", "crashed", "SIGKILL"),
            ("segfault", "crashed", "SIGSEGV"),
            ("error", "error", "the stub was told to fail"),
            ("memory", "oom", "run out of memory"),
            ("refused", "skipped", "the stub cannot run here; use another precision"),
            ("odd", "error", "a metric failed: ValueError: too odd for this metric"),
            ("stuck", "timeout", "5 s"),
        ],
    )
    def test_a_failing_variant_has_its_status_and_reason(
        self, precision: str, status: str, words: str, failing: Ran
    ) -> None:
        frame = _by_variant(failing).loc["canary", precision]
        assert frame.status.to_dict() == {"two": status, "long.txt": status}
        assert [words in reason for reason in frame.reason] == [True, True]
        assert frame.kld_mean.isna().all()

    def test_a_metric_from_elsewhere_is_a_column_and_its_failure_costs_its_own_row_only(self, failing: Ran) -> None:
        """A new metric is one file, ours or anybody's."""
        assert _by_variant(failing).stub_answers[GOOD].tolist() == [2, 1, 2, 1]

    def test_an_exception_keeps_its_traceback_in_the_row(self, failing: Ran) -> None:
        assert "RuntimeError" in _by_variant(failing).traceback["canary", "error", "two"]
        failing.end.stdout.no_fnmatch_line("*Traceback*")

    def test_a_missing_package_is_a_skip_that_names_the_pip_line(self, failing: Ran) -> None:
        row = _by_variant(failing).loc["canary", "w4", "two"]
        assert (row.method, row.status) == ("absent", "skipped")
        assert "no_such_module" in row.reason
        assert "pip install no_such_module" in row.reason

    def test_a_worker_killed_in_the_middle_keeps_the_prompt_sets_it_finished(self, failing: Ran) -> None:
        """One job, two prompt sets; the worker dies while it times the second."""
        frame = _by_variant(failing).loc["canary", "late"]
        assert frame.status.to_dict() == {"two": "ok", "long.txt": "crashed"}
        assert "SIGKILL" in frame.reason["long.txt"]

    @pytest.mark.parametrize(
        ("model", "prompts", "words"),
        [
            ("canary", "odd.txt", "more than the context of 1024 tokens; shorten the prompt"),
            ("canary", "empty.txt", "has no prompts; write one prompt a line"),
            ("./broken", "two", "has no config.json"),
        ],
    )
    def test_what_cannot_be_used_is_a_row_with_the_reason(self, model: str, prompts: str, words: str, failing: Ran) -> None:
        row = _by_variant(failing).loc[model, "exact", prompts]
        assert row.status == "error"
        assert words in row.reason

    def test_the_summary_names_the_results_and_every_failure(self, failing: Ran) -> None:
        summary = " ".join(failing.end.stdout.str().partition("= quantbench =")[2].split())
        assert "results of run" in summary
        frame = failing.table()
        for status, reason in zip(frame.status, frame.reason, strict=True):
            assert status == "ok" or reason in summary


class TestShortRuns:
    def test_selection_by_k_measures_and_stores_only_what_is_selected(self, short: Mapping[str, Ran]) -> None:
        assert short["selected"].table().scenario_id.tolist() == ["canary/stub-noisy/two"]
        assert short["selected"].table("runs").planned.tolist() == [1]

    def test_save_and_compare_work_as_pytest_benchmark_documents_them(self, short: Mapping[str, Ran]) -> None:
        assert short["selected"].end.ret == pytest.ExitCode.OK
        short["selected"].end.stdout.fnmatch_lines(["*0001_first*"])

    def test_benchmark_disable_still_measures_and_stores(self, short: Mapping[str, Ran]) -> None:
        short["disabled"].end.assert_outcomes(passed=6, deselected=3)
        assert short["disabled"].table().status.tolist() == ["ok", "ok"]

    def test_without_pytest_benchmark_the_rows_are_still_written(self, short: Mapping[str, Ran]) -> None:
        short["without"].end.assert_outcomes(passed=6, skipped=3)
        assert short["without"].table().status.tolist() == ["ok", "ok", "skipped"]

    def test_the_inline_engine_measures_in_this_process(self, short: Mapping[str, Ran]) -> None:
        """A worker of its own would be the first to go when memory runs out."""
        own = Path("/proc/self/oom_score_adj").read_text().strip()
        for name in INLINE:
            facts = json.loads(short[name].table().query("status == 'ok'").facts.iloc[-1])
            assert facts["oom_score_adj"] == own

    def test_a_refusal_is_a_skip_with_the_reason(self, short: Mapping[str, Ran]) -> None:
        assert short["without"].end.ret == pytest.ExitCode.OK
        short["without"].end.stdout.fnmatch_lines(["*the stub cannot run here; use another precision*"])

    def test_collect_only_measures_nothing(self, short: Mapping[str, Ran]) -> None:
        short["listed"].end.stdout.fnmatch_lines(["test_latency.py::test_prefill[[]canary/stub-noisy/two[]]"])
        assert not (short["listed"].folder / "listed").exists()

    @pytest.mark.parametrize("argument", BAD_INPUT)
    def test_bad_input_is_one_sentence_and_a_usage_error(self, argument: str, short: Mapping[str, Ran]) -> None:
        end = short[argument].end
        assert end.ret == pytest.ExitCode.USAGE_ERROR
        assert BAD_INPUT[argument] in end.stdout.str()
        assert "Traceback" not in end.stdout.str()


def test_ctrl_c_keeps_finished_rows_and_ends_with_pytests_code(stub_path: Path, tmp_path: Path) -> None:
    plan(tmp_path, "exact,stuck")
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "--quantbench-matrix=matrix.toml", *OPTIONS],
        cwd=tmp_path, env=environment(tmp_path, stub_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # a suite that runs in the background ignores SIGINT, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads are about
    )  # fmt: skip
    finished = tmp_path / "results" / "scenarios"
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
    assert pd.read_parquet(finished).precision.tolist() == ["exact"]
    assert pd.read_parquet(tmp_path / "results" / "runs").interrupted.tolist() == [True]


def _entries(ran: Ran) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(ran.folder.joinpath("not/yet/there/out.json").read_text())["benchmarks"]
    return entries


def _by_variant(ran: Ran) -> pd.DataFrame:
    return ran.table().set_index(["model", "precision", "prompts"]).sort_index()
