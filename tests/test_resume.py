"""A run that was killed goes on: what is finished is not measured again, and its rows are those of a run that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from quantbench.core.errors import UsageError
from quantbench.core.machine import Machine
from quantbench.core.record import Missing, Output, Record, Sample, Status
from quantbench.core.scenario import Conditions, Scenario, Variant
from quantbench.core.trace import Calls, Generation, Round, Trace
from quantbench.metrics import all_columns
from quantbench.planning.case import Case
from quantbench.planning.outlook import Outlook
from quantbench.results.resume import LAST, hold, resume
from quantbench.results.store import Run, Store, load
from quantbench.running.recorder import raw_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MACHINE = Machine(cpu="Xeon", cpus=2, memory_bytes=2**34, isa="avx2", system="Linux x86_64")
CONDITIONS = Conditions(output_tokens=4)
GOOD = Scenario(model="canary", variant=Variant(method="torch", precision="fp32"), prompts="ten", conditions=CONDITIONS)
BAD = replace(GOOD, variant=Variant(method="torch", precision="fp16"))
NEXT = replace(GOOD, variant=Variant(method="torch", precision="bf16"))


def run_of(day: int = 1, **changes: Any) -> Run:
    """A session on that day."""
    given = {"machine": MACHINE, "versions": {"torch": "2"}, "command": "pytest", "commit": "abc", "profile": "quick"}
    started = datetime(2026, 1, day, 23, 59, 59, 123456, tzinfo=UTC)
    return Run(**{"engine": "process", "run_id": f"2026010{day}T235959-aaaaaa", "started_at": started, **given, **changes})


def record_of(scenario: Scenario, status: str = "ok", key: str = "k", samples: tuple[Sample, ...] = ()) -> Record:
    """A record with a figure in every column but one."""
    figures = {"int": 7, "float": 0.5, "string": "x", "bool": True}
    values: dict[str, Any] = {column.name: figures[column.kind] for column in all_columns()}
    answer = Output(
        index=0, prompt="p", prompt_tokens=(1, 2), reference_tokens=(3,), variant_tokens=(4,), reference_text="a",
        variant_text="b", exact_match=False, first_divergence=0, token_match=0.0, chrf=1.0,
    )  # fmt: skip
    return Record(
        scenario=scenario, scenario_key=key, status=Status(status), reason="" if status == "ok" else "it failed",
        values={**values, "quantize_s": Missing("it is not quantized")} if status == "ok" else {}, samples=samples,
        facts={"threads": "2", "context": "64", "anchor": "torch/fp32"}, outputs=(answer,) if status == "ok" else (),
        repeat=scenario.repeat,
    )  # fmt: skip


SAMPLE = (Sample("prefill", 0, 0, 0.25, 1), Sample("e2e", 0, 0, 0.5, 2), Sample("gap", 0, 0, 0.25))


@pytest.fixture
def results(tmp_path: Path) -> str:
    """Where results go."""
    return str(tmp_path / "results")


@pytest.fixture
def killed(results: str) -> str:
    """A run that was killed after an ok row and a failed one."""
    store = Store(results, run_of())
    store.begin(planned=3)
    store.append(record_of(GOOD, samples=SAMPLE), instrument_check=True)
    store.append(record_of(BAD, "crashed"), instrument_check=True)
    return results


def files(results: str, table: str) -> list[str]:
    """The names of a table's files."""
    return sorted(path.name for path in Path(results, table).rglob("*") if path.is_file())


def _case(scenario: Scenario, key: str) -> Case:
    return Case(scenario=scenario, key=key, outlook=Outlook(weight_bytes=1), variant=scenario.variant)


class TestWhatIsFound:
    def test_an_ok_row_is_found_by_scenario_repeat_and_key(self, killed: str) -> None:
        with resume(killed, LAST, run_of(2)) as earlier:
            assert earlier.find(_case(GOOD, "k")) is not None
            assert earlier.find(_case(GOOD, "another content")) is None
            assert earlier.find(_case(replace(GOOD, repeat=1), "k")) is None
            assert earlier.find(_case(NEXT, "k")) is None

    @pytest.mark.parametrize("status", [status for status in Status if status != Status.OK])
    def test_a_row_that_failed_or_was_skipped_is_to_be_tried_again(self, status: Status, results: str) -> None:
        store = Store(results, run_of())
        store.begin(planned=1)
        store.append(record_of(GOOD, status), instrument_check=True)
        with resume(results, LAST, run_of(2)) as earlier:
            assert not earlier.finished(GOOD)
            assert earlier.find(_case(GOOD, "k")) is None

    def test_a_record_comes_back_as_it_was_stored(self, killed: str) -> None:
        with resume(killed, LAST, run_of(2)) as earlier:
            record, _ = earlier.find(_case(GOOD, "k")) or pytest.fail("not found")
        before = record_of(GOOD, samples=SAMPLE)
        same = ("scenario", "scenario_key", "status", "values", "facts", "samples", "outputs", "repeat")
        assert [getattr(record, name) for name in same] == [getattr(before, name) for name in same]

    def test_timed_answers_calls_and_scores_come_back_as_they_were_measured(self, results: str) -> None:
        def answer(prompt: int, base: float, tokens: int = 0, first: int = 1) -> Generation:
            return Generation(
                prompt=prompt, prompt_tokens=None, prefill_s=base, gaps_s=(base / 3, base / 7), e2e_s=base * 2, tokens=tokens,
                first_tokens=first,
            )  # fmt: skip

        rounds = tuple(
            Round(
                index=index, variant=(answer(1, 0.1 + index), answer(0, 0.2, tokens=9, first=4)),
                anchor=(answer(0, 0.3),) if index else (),
            )
            for index in range(2)
        )  # fmt: skip
        calls = (Calls(variant=(0.1, 0.2), anchor=(0.3,)), Calls(variant=(0.4,), anchor=()))
        seen = Trace(
            import_s=0.5, load_s=0.5, quantize_s=None, measured_s=1.0, parameters=7, weights=None, weight_bytes_running=None,
            artifact_bytes=7, peak=None, anchor="torch/fp32", rounds=rounds, answers=(), columns=None, calls=calls,
            score_s=(0.1, 1 / 3),
        )  # fmt: skip
        store = Store(results, run_of())
        store.begin(planned=1)
        store.append(record_of(GOOD, samples=tuple(raw_samples(seen, 3))), instrument_check=True)
        with resume(results, LAST, run_of(2)) as earlier:
            _, trace = earlier.find(_case(GOOD, "k")) or pytest.fail("not found")
        assert (trace.rounds, trace.calls, trace.score_s) == (rounds, calls, seen.score_s)
        assert (trace.load_s, trace.anchor, trace.answers[0].text) == (0.5, "torch/fp32", "b")
        assert trace.absent["quantize_s"] == "it is not quantized"
        assert {"weights", "peak", "columns"} <= set(trace.absent)

    def test_samples_of_something_else_are_no_samples_of_it(self, killed: str) -> None:
        """What replaced them may have been killed before its row was written."""
        (path,) = Path(killed).rglob("samples/*/*.parquet")
        pd.read_parquet(path).drop(columns="date", errors="ignore").assign(scenario_key="other").to_parquet(path)
        with resume(killed, LAST, run_of(2)) as earlier:
            assert earlier.find(_case(GOOD, "k")) is None


    @pytest.mark.parametrize("table", ["samples", "outputs"])
    def test_a_row_whose_samples_or_answers_are_gone_is_measured_again(self, table: str, killed: str) -> None:
        for path in Path(killed).rglob(f"{table}/*/*.parquet"):
            path.unlink()
        with resume(killed, LAST, run_of(2)) as earlier:
            assert earlier.find(_case(GOOD, "k")) is None


class TestWhichRun:
    def test_last_is_the_last_of_this_machine(self, killed: str) -> None:
        other = replace(MACHINE, cpus=64)
        Store(killed, run_of(3, machine=other)).begin(planned=1)
        Store(killed, run_of(2)).begin(planned=1)
        with resume(killed, LAST, run_of(4)) as earlier:
            assert earlier.run.run_id == run_of(2).run_id
        with resume(killed, LAST, run_of(4, machine=other)) as earlier:
            assert earlier.run.run_id == run_of(3).run_id

    def test_last_is_the_one_that_began_last_whatever_the_clock_says(self, killed: str) -> None:
        """The clock was set back before the second, and a file of the runs is broken."""
        Store(killed, run_of(3)).begin(planned=1)
        Store(killed, run_of(2)).begin(planned=1)
        (Path(killed, "runs", "date=2026-01-03") / "20260109T000000-bbbbbb-00000.parquet").write_bytes(b"broken")
        with resume(killed, LAST, run_of(4)) as earlier:
            assert (earlier.run.run_id, earlier.run.run_number) == (run_of(2).run_id, 3)
            store = Store(killed, earlier.run, earlier.numbers)
            store.begin(planned=1)
        with resume(killed, LAST, run_of(4)) as earlier:
            assert earlier.run.run_number == 3  # a run that is resumed keeps its number

    def test_a_run_keeps_its_id_and_start_and_says_what_it_was_started_with(self, killed: str) -> None:
        with resume(killed, run_of().run_id, run_of(2, command="pytest --more", commit="def")) as earlier:
            assert (earlier.run.run_id, earlier.run.started_at) == (run_of().run_id, run_of().started_at)
            assert (earlier.run.command, earlier.run.commit) == ("pytest; pytest --more", "abc, def")
            assert earlier.planned == 3
            Store(killed, earlier.run).begin(planned=3)
        with resume(killed, LAST, run_of(3, command="pytest --more", commit="def")) as earlier:
            assert (earlier.run.command, earlier.run.commit) == ("pytest; pytest --more", "abc, def")

    @pytest.mark.parametrize(
        ("wanted", "changes", "words"),
        [
            ("20260101T235959-aaaaab", {}, "unknown run '20260101T235959-aaaaab'; did you mean '20260101T235959-aaaaaa'?"),
            (LAST, {"machine": replace(MACHINE, isa="amx")}, "no run of this machine"),
            ("20260101T235959-aaaaaa", {"machine": replace(MACHINE, isa="amx")}, "was measured on machine "),
            (LAST, {"profile": "thorough"}, "was measured with profile quick and not thorough; resume it as it was started"),
            (LAST, {"engine": "inline"}, "was measured with engine process and not inline"),
            (LAST, {"versions": {"torch": "3"}}, "was measured with torch 2 and not 3"),
            (LAST, {"versions": {"torch": "2", "new": "1"}}, "was measured with new not installed and not 1"),
        ],
    )
    def test_what_cannot_be_resumed_is_one_sentence(
        self, wanted: str, changes: Mapping[str, Any], words: str, killed: str
    ) -> None:
        with pytest.raises(UsageError) as caught:
            resume(killed, wanted, run_of(2, **changes))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("wanted", [LAST, "some-run"])
    def test_without_any_run_there_is_none_to_resume(self, wanted: str, results: str) -> None:
        with pytest.raises(UsageError, match=r"^there is no run .*to resume under .*; start one"):
            resume(results, wanted, run_of())

    def test_files_of_other_runs_are_not_read(self, killed: str) -> None:
        for table in ("scenarios", "samples", "outputs"):
            folder = Path(killed, table, "date=2026-01-01")
            for name in ("20260101T235959-bbbbbb-00000.parquet", f"{run_of().run_id}-bbbbbb-00000.parquet", "other.parquet"):
                (folder / name).write_bytes(b"no parquet")
        with resume(killed, LAST, run_of(2)) as earlier:
            assert set(earlier.rows) == {(GOOD.id, 0), (BAD.id, 0)}
            assert earlier.find(_case(GOOD, "k")) is not None
            earlier.clear()
        assert sum("bbbbbb" in name for name in files(killed, "samples")) == 2

    def test_no_two_processes_are_at_one_run(self, results: str) -> None:
        Store(results, run_of()).begin(planned=1)
        held = hold(results, run_of())
        assert held is not None
        with held, pytest.raises(UsageError, match=r"is being measured by another process; wait until it ends"):
            resume(results, LAST, run_of(2))
        with resume(results, LAST, run_of(2)), pytest.raises(UsageError, match="is being measured"):
            hold(results, run_of())
        with resume(results, LAST, run_of(2)):
            pass


class TestRowsTakeTheirPlaces:
    def go_on(self, results: str, *records: Record) -> None:
        """A session that resumes the run."""
        with resume(results, LAST, run_of(2)) as earlier:
            earlier.clear()
            store = Store(results, earlier.run, earlier.numbers)
            store.begin(planned=3)
            for record in records:
                store.append(record, instrument_check=True)
            store.finish(planned=3, finished=3, ok=3, interrupted=False)

    def test_what_is_tried_again_replaces_its_row_and_what_is_new_follows(self, killed: str) -> None:
        self.go_on(killed, record_of(BAD, samples=SAMPLE), record_of(NEXT))
        for frame in (load(killed), pd.read_parquet(f"{killed}/scenarios")):
            assert frame.scenario_id.tolist() == [GOOD.id, BAD.id, NEXT.id]
            assert set(frame.status) == {"ok"}
            assert set(frame.run_id) == {run_of().run_id}
        assert load(killed, "samples").scenario_id.value_counts().to_dict() == {GOOD.id: len(SAMPLE), BAD.id: len(SAMPLE)}

    def test_what_failed_this_time_leaves_no_samples_of_what_was_asked_before(self, killed: str) -> None:
        self.go_on(killed, record_of(GOOD, "timeout", key="other content"))
        assert load(killed).status.tolist() == ["timeout", "crashed"]
        assert files(killed, "samples") == files(killed, "outputs") == []

    def test_a_run_has_one_row_from_its_start_to_its_end(self, killed: str) -> None:
        (before,) = load(killed, "runs").to_dict("records")
        assert (before["planned"], before["interrupted"]) == (3, True)
        assert all(pd.isna(before[name]) for name in ("finished_at", "finished", "ok"))
        self.go_on(killed, record_of(BAD), record_of(NEXT))
        (after,) = load(killed, "runs").to_dict("records")
        assert (after["planned"], after["finished"], after["ok"], after["interrupted"]) == (3, 3, 3, False)
        assert after["started_at"] == before["started_at"] < after["finished_at"]

    def test_a_row_of_the_run_that_had_another_number_moves(self, killed: str) -> None:
        (path,) = Path(killed).rglob("runs/*/*.parquet")
        path.rename(path.with_name(path.name.replace("-00000", "-00017")))
        self.go_on(killed)
        assert len(load(killed, "runs")) == 1

    def test_what_a_killed_process_left_half_done_goes_away(self, killed: str) -> None:
        for table, number in (("samples", 1), ("samples", 2), ("outputs", 2)):  # 1 is of a row that failed, 2 has none
            path = Path(killed, table, "date=2026-01-01", f"{run_of().run_id}-{number:05d}.parquet")
            path.write_bytes(next(path.parent.glob("*.parquet")).read_bytes())
        half = Path(killed, "scenarios", "date=2026-01-01", f".{run_of().run_id}-00002.parquet.partial")
        half.write_bytes(b"PAR1")
        self.go_on(killed)
        assert not half.exists()
        assert len(load(killed, "samples")) == len(SAMPLE)
        assert len(load(killed, "outputs")) == 1


DRIVER = """
import gc, json, os, signal, sys
import pandas, pyarrow.dataset, pyarrow.parquet, pytest
import quantbench.running.runner, quantbench.tables.summary
from quantbench.results.store import Store

def in_a_process(name, arguments, writes=None):
    # A session that is killed right after so many writes; what it returned.
    pid = os.fork()
    if pid == 0:
        out = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1); os.dup2(out, 2)
        write = Store._write
        def counted(self, *rest):
            nonlocal writes
            write(self, *rest)
            writes -= 1
            if not writes:
                os.kill(os.getpid(), signal.SIGKILL)
        if writes:
            Store._write = counted
        code = int(pytest.main([*arguments, f"--quantbench-keep-jobs={name}-jobs", f"--benchmark-json={name}.json"]))
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

gc.freeze()
asked = json.load(sys.stdin)
ends = {"whole": in_a_process("whole", [*asked["arguments"], "--quantbench-results=whole"])}
for writes in asked["points"]:
    place = [*asked["arguments"], f"--quantbench-results=cut{writes}"]
    ends[f"cut{writes}"] = in_a_process(f"cut{writes}", place, writes)
    ends[f"on{writes}"] = in_a_process(f"on{writes}", [*place, "--quantbench-resume=last"])
ends["again"] = in_a_process("again", [*place, "--quantbench-resume=last"])
json.dump(ends, open("ends.json", "w"))
"""
POINTS = (1, 6, 10)
"""Writes after which a session is killed. They are the run's row, and of each scenario its samples, its answers and its row."""

SCENARIOS = ("canary/stub-exact/two", "canary/stub-noisy/two", "canary/stub-error/two")
SAME = (
    "scenario_key", "model", "method", "precision", "prompts", "status", "reason", "control", "reference", "is_reference",
    "bits", "device", "threads", "context", "seed", "kernel", "instrument_check", "machine", "versions", "weight_bytes",
    "kld_mean", "kld_mean_se", "kld_median", "kld_max", "top1_agreement", "delta_p_rms", "ppl", "ppl_ratio", "exact_match",
    "token_match", "chrf", "stub_answers",
)  # fmt: skip
"""What is the same however often it is measured."""


@pytest.fixture(scope="module")
def ends(
    stub_path: Path, stub_cache: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, int]]:
    """Sessions that were killed and resumed, and one that was not: their folder and what they returned."""
    folder = tmp_path_factory.mktemp("resume")
    for name, tests in {"latency": "test_decode, test_prefill", "load": "test_load"}.items():
        (folder / f"test_{name}.py").write_text(f"from quantbench.suite.test_{name} import {tests}\n")
    (folder / "matrix.toml").write_text(
        'control = false\nprompts = ["two"]\n[methods]\nstub = ["exact", "noisy", "error"]\n'
        '[conditions]\nreference = "stub/exact"\noutput_tokens = 4\nanswer_tokens = 4\ncontinuation_tokens = 8\n'
    )
    arguments = [
        "--quantbench-matrix=matrix.toml", "--quantbench-profile=quick", "--quantbench-engine=inline", "--quantbench-no-probes",
        "-p", "no:cacheprovider", "-p", "no:randomly",
    ]  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"} | {"STUB_UNWATCHED": "1"}
    kept["STUB_WITHOUT_TORCH"] = "1"
    subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=folder, input=json.dumps({"arguments": arguments, "points": POINTS}), text=True,
        env={**kept, "PYTHONPATH": str(stub_path), "QUANTBENCH_CACHE": str(stub_cache(folder))}, check=True, timeout=300,
    )  # fmt: skip
    returned: dict[str, int] = json.loads((folder / "ends.json").read_text())
    return folder, returned


class TestKilledAndResumed:
    @pytest.mark.parametrize("writes", POINTS)
    def test_the_rows_are_those_of_a_run_that_was_not_killed(self, writes: int, ends: tuple[Path, dict[str, int]]) -> None:
        folder, returned = ends
        assert returned[f"cut{writes}"] == -9
        assert returned[f"on{writes}"] == returned["whole"] == pytest.ExitCode.TESTS_FAILED  # error is an error each time
        whole, resumed = (_rows(folder / name) for name in ("whole", f"cut{writes}"))
        assert list(whole.index) == [(each, 0) for each in sorted(SCENARIOS)]
        for name in SAME:
            pd.testing.assert_series_equal(resumed[name], whole[name])
        assert len(set(resumed.run_id)) == 1
        assert _counts(folder / f"cut{writes}") == _counts(folder / "whole")
        (run,) = pd.read_parquet(folder / f"cut{writes}" / "runs").to_dict("records")
        assert (run["planned"], run["finished"], run["ok"], run["interrupted"]) == (3, 3, 2, False)

    @pytest.mark.parametrize(
        ("writes", "again"),
        [(1, "exact noisy error"), (6, "noisy error"), (10, "error")],
    )
    def test_only_what_was_not_finished_is_measured_again(self, writes: int, again: str, ends: tuple[Path, Any]) -> None:
        folder, _ = ends
        jobs = [path.name.split("-")[2] for path in sorted(folder.glob(f"on{writes}-jobs/*/*-measure"))]
        assert jobs == again.split()

    def test_pytest_benchmark_gets_the_stored_samples(self, ends: tuple[Path, Any]) -> None:
        """Nothing but the error was measured in that session."""
        folder, _ = ends
        place = folder / f"cut{POINTS[-1]}"
        entries = {entry["name"]: entry for entry in json.loads((folder / "again.json").read_text())["benchmarks"]}
        assert len(entries) == 2 * 3
        samples = pd.read_parquet(place / "samples")
        for name in SCENARIOS[:2]:
            mine = samples[samples.scenario_id == name]
            for test, phase in (("prefill", "prefill"), ("decode", "gap")):
                entry = entries[f"test_{test}[{name}]"]
                expected = [fmean(values) for _, values in mine[mine.phase == phase].groupby("round").value_s]
                assert entry["stats"]["data"] == pytest.approx(expected)
                assert entry["extra_info"]["kld_mean"] == _rows(place).kld_mean[name, 0]
        assert [path.name.split("-")[2] for path in folder.glob("again-jobs/*/*-measure")] == ["error"]

    def test_the_summary_is_of_the_whole_run_and_says_that_it_was_resumed(self, ends: tuple[Path, Any]) -> None:
        folder, _ = ends
        text = " ".join((folder / "again.log").read_text().split())
        assert "resumed: 2 of the 3 scenarios of this run had been measured before" in text
        assert "stub/noisy" in text.partition("Measured: canary")[2]


def _rows(results: Path) -> pd.DataFrame:
    return pd.read_parquet(results / "scenarios").set_index(["scenario_id", "repeat"]).sort_index()


def _counts(results: Path) -> dict[str, Any]:
    """Which samples and answers there are, by scenario; rounds differ in number, and in how often an anchor had its turn."""
    samples, outputs = (pd.read_parquet(results / name) for name in ("samples", "outputs"))
    first = samples[samples["round"] == 0]
    own = first[~first["phase"].str.startswith("anchor_")].groupby(["scenario_id", "phase"]).size().to_dict()
    phases = set(zip(first["scenario_id"], first["phase"], strict=True))
    return {"samples": own, "phases": phases, "outputs": outputs.groupby("scenario_id").size().to_dict()}
