"""The plugin as its users see it: what pytest prints and returns, and what lies on disk afterwards.

A run takes seconds, most of them for imports; so there are few, and many tests look at each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from quantbench.core.errors import UsageError
from quantbench.core.scenario import Scenario, Variant
from quantbench.planning import options as settings
from quantbench.pytest_settings import raw_setting
from quantbench.scenario_tests import PARAMETER
from quantbench.suite.replay import benchmark_group

OPTIONS = ("--quantbench-profile=quick", "-p", "no:cacheprovider")
SUITE = {"latency": "test_decode, test_prefill", "load": "test_load", "score": "test_score"}


@dataclass(frozen=True)
class Ran:
    """A run of pytest that is over: where it was, what it returned and what it said."""

    folder: Path
    end: pytest.RunResult
    results: str = "results"

    @property
    def tests(self) -> list[str]:
        """The tests that it listed."""
        return [line for line in self.end.stdout.lines if "::" in line]

    def table(self, name: str = "scenarios") -> pd.DataFrame:
        """What it stored, by plain pandas, as an analyst would read it."""
        return _read(self.folder / self.results / name)


@cache
def _read(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)


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
    here = {"PYTHONPATH": str(stub_path), "QUANTBENCH_CACHE": str(folder / "cache"), "STUB_WITHOUT_TORCH": "1"}
    return {**kept, **here, "STUB_UNWATCHED": "1"}  # else what these tests run beside decides how often things are measured


def run(folder: Path, stub_path: Path, *arguments: str) -> Ran:
    """Run pytest on the shipped benchmarks, in a process of its own."""
    command = [sys.executable, "-m", "pytest", "--quantbench-matrix=matrix.toml", *OPTIONS, *arguments]
    return Ran(folder, _ended(command, folder, stub_path))


def _ended(command: Sequence[str], folder: Path, stub_path: Path, stdin: str = "", **variables: str) -> pytest.RunResult:
    variables = {**environment(folder, stub_path), **variables}
    done = subprocess.run(command, cwd=folder, env=variables, input=stdin, capture_output=True, text=True, check=False)
    return pytest.RunResult(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), 0.0)


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
        "-k", "exact or canary and (two or long)", "--quantbench-timeout=10", "--quantbench-no-probes",
    )  # fmt: skip


BAD_INPUT = {
    "--quantbench-method=bitsandbyte": "unknown method 'bitsandbyte'; did you mean 'bitsandbytes'?",
    "--quantbench-device=cuda:99": "device 'cuda:99' was requested, but ",
    "--quantbench-matrix=none.toml": "does not exist",
    "--quantbench-timeout=0": "not positive",
    "--quantbench-repeats=0": "--repeats 0 measures nothing; ask for at least 1",
    "--quantbench-results=matrix.toml/below": "results cannot be written",
    "--quantbench-resume=nonesuch": "unknown run 'nonesuch'; known: 20",
}
INLINE = {
    "selected": ("-k", "noisy and decode", "--benchmark-compare=0001", "--benchmark-compare-fail=median:10000%"),
    "disabled": ("--benchmark-disable", "-k", "not refused"),
    "without": ("-p", "no:benchmark", "-rs"),
    "quiet": ("-q", "-k", "load and not exact"),
    "beside": ("own.py", "test_load.py", "-k", "mine or noisy"),
    "nothing": ("own.py", "test_load.py", "-k", "refused or passes"),
    "own": ("own.py", "test_load.py", "-k", "passes"),
}
UNMEASURED = ("nothing", "own")


def run_by_hand(sound: Ran, stub_path: Path) -> Ran:
    """A job of that run once more, after its first trace went away."""
    job = min(sound.folder.glob("jobs/*/*-stub-exact-measure"))
    (job / "trace-0.json").unlink()
    return Ran(job, _ended([sys.executable, "-m", "quantbench.measuring.worker", str(job)], sound.folder, stub_path))


def run_interrupted(folder: Path, stub_path: Path) -> Ran:
    """Ctrl-C while the second variant is stuck."""
    plan(folder, "exact,stuck")
    # a suite that runs in the background ignores SIGINT, and its children inherit that
    heed = "import signal, sys, pytest; signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(pytest.main())"
    command = [sys.executable, "-c", heed, "--quantbench-matrix=matrix.toml", "--quantbench-no-probes", *OPTIONS]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(folder, stub_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for _ in range(600):
        if list(folder.glob("results/scenarios/*/*.parquet")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return Ran(folder, pytest.RunResult(process.returncode, output.splitlines(), [], 0.0))


def run_resumed(interrupted: Ran, stub_path: Path) -> tuple[Ran, Ran]:
    """That run goes on, with what was stuck ended in time; before, and after."""
    before = Ran(interrupted.folder, interrupted.end, results="before")
    shutil.copytree(before.folder / "results", before.folder / "before")
    after = run(
        before.folder, stub_path, "--quantbench-no-probes", "--quantbench-timeout=3", "--quantbench-resume=last",
        "--quantbench-keep-jobs=jobs",
    )  # fmt: skip
    return before, after


def run_short(sound: Ran, stub_path: Path, one_after_another: str) -> dict[str, Ran]:
    """What ends soon or starts no process: one after another in one process, in the folder of that run."""
    plan(sound.folder, "exact,noisy,refused", matrix="short.toml")
    (sound.folder / "own.py").write_text("def test_passes(): pass\n\ndef test_mine(benchmark): benchmark(sum, [1])\n")
    common = ("--quantbench-matrix=short.toml", "-p", "quantbench.plugin", *OPTIONS)
    inline = ("-p", "benchmark", "--quantbench-engine=inline", "--quantbench-no-probes")
    runs = {
        **{each: (*common, each) for each in BAD_INPUT},
        "listed": (*common, "--collect-only", "-q", "--quantbench-results=listed"),
        "gpu": (*common, "--collect-only", "-q", "-m", "gpu", "--quantbench-device=cuda:0"),
        "no gpu": (*common, "-m", "not gpu", "--quantbench-device=cuda"),
        "gpu on cpu": (*common, "--collect-only", "-q", "-m", "gpu"),
        **{name: (*common, *inline, *each, f"--quantbench-results={name}") for name, each in INLINE.items()},
    }  # these last: with torch imported, pytest's collections of garbage take their time
    command = [sys.executable, "-c", one_after_another]
    done = _ended(command, sound.folder, stub_path, json.dumps(runs), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.ret == 0, done.stderr.str()
    return {
        name: Ran(sound.folder, pytest.RunResult(code, text.splitlines(), [], 0.0), results=name)
        for name, (code, text) in json.loads(done.stdout.str()).items()
    }


@pytest.fixture(scope="module")
def started(
    stub_path: Path, stub_cache: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory, one_after_another: str
) -> Iterator[Mapping[str, Future[Any]]]:
    """All runs; while one waits for what is stuck, two others work."""
    pool = ThreadPoolExecutor(3)
    runs: dict[str, Future[Any]] = {}
    for each in (run_sound, run_failing, run_interrupted):
        folder = tmp_path_factory.mktemp(each.__name__)
        stub_cache(folder)
        runs[each.__name__] = pool.submit(each, folder, stub_path)
    runs["run_by_hand"] = pool.submit(lambda: run_by_hand(runs["run_sound"].result(), stub_path))
    runs["run_short"] = pool.submit(lambda: run_short(runs["run_sound"].result(), stub_path, one_after_another))
    runs["run_resumed"] = pool.submit(lambda: run_resumed(runs["run_interrupted"].result(), stub_path))
    yield runs
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def sound(started: Mapping[str, Future[Ran]]) -> Ran:
    """See run_sound."""
    return started["run_sound"].result()


@pytest.fixture(scope="module")
def failing(started: Mapping[str, Future[Ran]]) -> Ran:
    """See run_failing."""
    return started["run_failing"].result()


@pytest.fixture(scope="module")
def short(started: Mapping[str, Future[dict[str, Ran]]]) -> dict[str, Ran]:
    """See run_short."""
    return started["run_short"].result()


NOT_ANSWERED = "a text is scored, not answered; name a prompt set such as 'mixed' as well"
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
        first, second = (frame[frame.repeat == repeat].set_index("scenario_id").scenario_key.to_dict() for repeat in (0, 1))
        assert first == second
        assert len(set(first.values())) == len(first)
        jobs = [path.name.split("-", 1)[1] for path in sorted(sound.folder.glob("jobs/*/*-measure"))]
        half = len(jobs) // 2
        assert set(jobs) == {f"{variant}-measure" for variant in VARIANTS}
        assert len(set(jobs[:half])) == len(VARIANTS)
        assert jobs[:half] == jobs[half:]

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
        samples = sound.table("samples").query("scenario_id == 'canary/stub-noisy/text:words' and repeat == 0")
        assert len(samples) > 1
        assert set(samples.phase) == {"score"}
        assert entry["stats"]["data"] == pytest.approx(samples.value_s.tolist())

    def test_a_probe_that_crashes_costs_itself_and_not_the_row_and_is_tried_again(self, sound: Ran) -> None:
        frame = sound.table().query("prompts == 'two' and not control").set_index(["method", "precision", "repeat"])
        assert set(frame.runs_on_cpu) == {True}
        for repeat in (0, 1):
            reason = json.loads(frame.null_reasons["fatal", "save", repeat])["saves_and_reloads"]
            assert reason.startswith("the probe process ended: the worker was ended by SIGSEGV")
            assert not frame.saves_and_reloads["stub", "exact", repeat]
            notes = json.loads(frame.capability_notes["stub", "exact", repeat])
            assert "cannot save to a file that is safe to load" in notes["save_reload"]
        jobs = Counter(path.name.split("-", 1)[1] for path in sound.folder.glob("jobs/*/*-*"))
        assert jobs["fatal-save-probe"] == jobs["fatal-save-measure"] > 1
        assert jobs["stub-exact-probe"] == jobs["stub-noisy-probe"] == 1 < jobs["stub-exact-measure"]
        assert jobs["stub-exact-control-probe"] == 0

    def test_a_job_can_be_run_again_by_hand(self, started: Mapping[str, Future[Ran]]) -> None:
        again = started["run_by_hand"].result()
        assert again.end.ret == 0, again.end.stderr.str()
        assert json.loads((again.folder / "trace-0.json").read_text())["facts"]["kernel"] == "stub"


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
            ("stuck", "timeout", "no result within 10 s"),
        ],
    )
    def test_a_failing_variant_has_its_status_and_reason(self, precision: str, status: str, words: str, failing: Ran) -> None:
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
            ("canary", "empty.txt", "has no prompts"),
            ("./broken", "two", "has no config.json"),
        ],
    )
    def test_what_cannot_be_used_is_a_row_with_the_reason(self, model: str, prompts: str, words: str, failing: Ran) -> None:
        row = _by_variant(failing).loc[model, "exact", prompts]
        assert row.status == "error"
        assert words in row.reason

    def test_progress_is_told_in_lines_beside_pytests_own_output(self, failing: Ran) -> None:
        left = r", (-|about \d+ (s|min)) left"
        about = r"quantbench: \d+ of 12, \S+ \w+/\w+: "
        # a job that takes long tells its stages, too
        meanwhile = [line for line in failing.end.stderr.lines if re.fullmatch(rf"{about}(?!.* after )[\w ]+{left}", line)]
        lines = [line for line in failing.end.stderr.lines if line not in meanwhile]
        assert len(lines) == failing.table().groupby(["model", "precision"]).ngroups
        assert [line for line in lines if not re.fullmatch(rf"{about}[\w, ]+ after \d+ s({left})?", line)] == []
        printed = failing.end.stdout.lines
        starts = [at for at, line in enumerate(printed) if line.startswith("quantbench: ") and "is already busy" not in line]
        assert len(starts) == 1, printed
        said = printed[starts[0] : starts[0] + 1 + printed[starts[0] + 1].startswith("  ")]
        assert max(map(len, said)) <= 100
        assert re.fullmatch(r"quantbench: \d+ scenarios in 12 jobs: about .* for ref.*; +estimated from .*", " ".join(said))
        failing.end.stdout.no_fnmatch_line("* left")

    def test_the_summary_counts_what_failed_and_names_the_results(self, failing: Ran) -> None:
        summary = failing.end.stdout.str().partition("= quantbench =")[2]
        assert "results of run" in summary
        frame = failing.table()
        for _, rows in frame.groupby(["model", "prompts"]):
            failed = rows[rows.status != "ok"]
            assert f"{len(failed)} of {len(rows)} not measured: " in summary
            reasons = set(failed[failed.status != "skipped"].reason)
            assert sum(reason in " ".join(summary.split()) for reason in reasons) >= min(3, len(reasons))


class TestShortRuns:
    def test_selection_by_k_measures_and_stores_only_what_is_selected(self, short: dict[str, Ran]) -> None:
        assert short["selected"].table().scenario_id.tolist() == ["canary/stub-noisy/two"]
        assert short["selected"].table("runs").planned.tolist() == [1]

    def test_save_and_compare_work_as_pytest_benchmark_documents_them(self, short: dict[str, Ran]) -> None:
        assert short["selected"].end.ret == pytest.ExitCode.OK
        short["selected"].end.stdout.fnmatch_lines(["*0001_first*"])

    def test_pytest_benchmarks_own_table_stands_there_only_where_it_is_asked_for(
        self, sound: Ran, short: dict[str, Ran]
    ) -> None:
        """Other benchmarks stay in it, unasked."""
        assert "Name (time in" not in sound.end.stdout.str()
        assert "Name (time in" in short["selected"].end.stdout.str()
        shown = short["beside"].end.stdout.str().partition("Name (time in")[2].partition("= quantbench =")[0]
        assert "test_mine" in shown
        assert "noisy" not in shown

    def test_benchmark_disable_still_measures_and_stores(self, short: dict[str, Ran]) -> None:
        short["disabled"].end.assert_outcomes(passed=6, deselected=3)
        assert short["disabled"].table().status.tolist() == ["ok", "ok"]

    def test_q_is_quiet_and_ends_with_what_failed_and_where_the_rest_is(self, short: dict[str, Ran]) -> None:
        text = short["quiet"].end.stdout.str()
        assert "quantbench: " not in text
        summary = text.partition("= quantbench =")[2]
        assert "1 of 2 not measured: 1 skipped; reasons: quantbench tables measured" in summary
        assert "results of run" in summary
        assert "Measured:" not in summary
        assert "Measured:" in short["disabled"].end.stdout.str().partition("= quantbench =")[2]

    def test_without_pytest_benchmark_the_rows_are_still_written(self, short: dict[str, Ran]) -> None:
        short["disabled"].end.stdout.fnmatch_lines(["benchmark: *"])
        short["without"].end.stdout.no_fnmatch_line("benchmark: *")
        short["without"].end.assert_outcomes(passed=6, skipped=3)
        assert short["without"].table().status.tolist() == ["ok", "ok", "skipped"]

    def test_the_inline_engine_measures_in_this_process(self, short: dict[str, Ran]) -> None:
        """A worker of its own would be the first to go when memory runs out."""
        own = Path("/proc/self/oom_score_adj").read_text().strip()
        for name in sorted(INLINE.keys() - set(UNMEASURED)):
            facts = json.loads(short[name].table().query("status == 'ok'").facts.iloc[-1])
            assert facts["oom_score_adj"] == own

    def test_a_refusal_is_a_skip_with_the_reason(self, short: dict[str, Ran]) -> None:
        assert short["without"].end.ret == pytest.ExitCode.OK
        short["without"].end.stdout.fnmatch_lines(["*the stub cannot run here; use another precision*"])

    def test_a_run_that_measured_nothing_of_what_was_selected_fails_with_one_sentence(self, short: dict[str, Ran]) -> None:
        """Though all that was not skipped passed; where no scenario was selected the suite is not quantbench's to judge."""
        assert short["nothing"].end.ret == pytest.ExitCode.TESTS_FAILED
        short["nothing"].end.assert_outcomes(passed=1, skipped=1, deselected=3)
        said = "nothing was measured (1 skipped); most frequent reason: the stub cannot run here"
        assert short["nothing"].end.stdout.str().count(said) == 1
        assert short["own"].end.ret == pytest.ExitCode.OK
        short["own"].end.assert_outcomes(passed=1, deselected=4)

    def test_collect_only_measures_nothing(self, short: dict[str, Ran]) -> None:
        short["listed"].end.stdout.fnmatch_lines(["test_latency.py::test_prefill[[]canary/stub-noisy/two[]]"])
        assert not (short["listed"].folder / "listed").exists()

    def test_what_asks_for_a_gpu_is_selected_and_left_out_by_its_marker(self, short: dict[str, Ran]) -> None:
        """Without a GPU: nothing selected, nothing asked for."""
        assert short["gpu"].end.ret == pytest.ExitCode.OK
        short["gpu"].end.stdout.fnmatch_lines(["test_latency.py::test_prefill[[]canary/stub-noisy/two[]]"])
        assert len(short["gpu"].tests) == len(short["listed"].tests) == 3 * 3
        for name in ("no gpu", "gpu on cpu"):
            assert short[name].end.ret == pytest.ExitCode.NO_TESTS_COLLECTED
            short[name].end.stdout.fnmatch_lines(["*9 deselected*"])

    @pytest.mark.parametrize("argument", BAD_INPUT)
    def test_bad_input_is_one_sentence_and_a_usage_error(self, argument: str, short: dict[str, Ran]) -> None:
        end = short[argument].end
        assert end.ret == pytest.ExitCode.USAGE_ERROR
        assert BAD_INPUT[argument] in end.stdout.str()
        assert "Traceback" not in end.stdout.str()


def test_ctrl_c_keeps_finished_rows_and_ends_with_pytests_code(started: Mapping[str, Future[Ran]]) -> None:
    run, _ = started["run_resumed"].result()
    assert run.end.ret == pytest.ExitCode.INTERRUPTED, run.end.stdout.str()
    assert run.table().precision.tolist() == ["exact"]
    assert run.table("runs").interrupted.tolist() == [True]


def test_an_interrupted_run_that_goes_on_measures_the_rest_only(started: Mapping[str, Future[tuple[Ran, Ran]]]) -> None:
    before, after = started["run_resumed"].result()
    after.end.assert_outcomes(passed=3, failed=3)
    assert after.table().precision.tolist() == ["exact", "stuck"]
    assert after.table().status.tolist() == ["ok", "timeout"]
    kept, again = before.table().iloc[0], after.table().iloc[0]
    assert kept[["run_id", "started_at", "decode_tps"]].equals(again[["run_id", "started_at", "decode_tps"]])
    (run,) = after.table("runs").to_dict("records")
    assert (run["planned"], run["finished"], run["ok"], run["interrupted"]) == (2, 2, 1, False)
    assert {path.name.split("-")[2] for path in after.folder.glob("jobs/*/*-*/")} == {"stuck"}


def _entries(ran: Ran) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(ran.folder.joinpath("not/yet/there/out.json").read_text())["benchmarks"]
    return entries


def _by_variant(ran: Ran) -> pd.DataFrame:
    return ran.table().set_index(["model", "precision", "prompts"]).sort_index()


def test_every_option_but_trust_has_an_ini_key(pytester: pytest.Pytester) -> None:
    """What runs a checkpoint's own code is asked for on the command line, never by a file that lies around."""
    pytester.makeini("[pytest]\nquantbench_no_probes = yes\n")
    config = pytester.parseconfigure("-p", "no:cacheprovider")
    for option in settings.OPTIONS:
        if option.key != "trust_remote_code":
            assert config.getini(f"quantbench_{option.key}") is not None
    assert raw_setting(config, next(each for each in settings.OPTIONS if each.name == "no-probes")) is True
    with pytest.raises(ValueError, match="trust_remote_code"):
        config.getini("quantbench_trust_remote_code")


def test_ini_keys_may_have_the_types_of_toml(pytester: pytest.Pytester) -> None:
    written = {"no_probes": "true", "probes": "false", "threads": "2", "seed": "0", "timeout": "1.5", "prompts": "'two,ten'"}
    lines = (f"quantbench_{name} = {value}" for name, value in written.items())
    pytester.makepyprojecttoml("\n".join(["[tool.pytest]", *lines]))
    config = pytester.parseconfigure("-p", "no:cacheprovider")
    found = settings.RunOptions.read(lambda option: raw_setting(config, option))
    assert (found.no_probes, found.probes, found.threads, found.seed, found.timeout) == (True, False, 2, 0, 1.5)
    assert found.prompts == ("two", "ten")
    assert (found.engine, found.device, found.repeats) == ("process", None, 1)


@pytest.mark.parametrize(("name", "value"), [("threads", "two"), ("no_probes", "perhaps"), ("timeout", "soon")])
def test_an_ini_key_with_an_impossible_value_is_one_sentence(pytester: pytest.Pytester, name: str, value: str) -> None:
    pytester.makeini(f"[pytest]\nquantbench_{name} = {value}\n")
    config = pytester.parseconfigure("-p", "no:cacheprovider")
    with pytest.raises(UsageError, match=rf"^ini key quantbench_{name}: .*{value}"):
        settings.RunOptions.read(lambda option: raw_setting(config, option))


@pytest.mark.parametrize(
    ("ini", "arguments", "shown"),
    [
        ("", [], False),
        ("", ["--benchmark-min-rounds=3"], False),
        ("", ["--benchmark-sort=min"], True),
        ("", ["--benchmark-columns", "min,max"], True),
        ("addopts = --benchmark-group-by=func", [], True),
    ],
)
def test_an_option_about_its_table_asks_for_it(pytester: pytest.Pytester, ini: str, arguments: list[str], shown: bool) -> None:
    pytester.makeini(f"[pytest]\n{ini}\n")
    config = pytester.parseconfigure("-p", "no:cacheprovider", *arguments)
    bench = {"group": "g", "name": "a", "fullname": "a", "params": {PARAMETER: "canary/stub-exact/two"}}
    groups = config.hook.pytest_benchmark_group_stats(config=config, benchmarks=[bench], group_by="group")
    assert [name for name, _ in groups] == ["g"] * shown


@pytest.mark.parametrize(
    ("prompts", "batch", "group"),
    [("ten", 1, "canary ten decode"), ("data/mine", 1, "canary data/mine decode"), ("/some/mine", 8, "canary mine@8 decode")],
)
def test_variants_of_a_prompt_set_are_one_benchmark_group(prompts: str, batch: int, group: str) -> None:
    for precision in ("fp32", "bf16"):
        variant = Variant(method="torch", precision=precision)
        scenario = Scenario(model="canary", variant=variant, prompts=prompts, batch=batch)
        assert benchmark_group(scenario, "test_decode") == group
