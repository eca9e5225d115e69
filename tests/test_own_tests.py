"""Tests of users' own that measure: what they say when they fail, what skips them, and what pytest's other tools see.

A run of pytest takes seconds, so there are few, and many tests look at each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pandas as pd
import pytest

import quantbench
from quantbench.core.errors import UsageError
from quantbench.core.scenario import Conditions, Scenario, Variant
from quantbench.planning.options import OF_A_SCENARIO, RunOptions, single
from quantbench.results.schema import timed_columns
from quantbench.running.measure import again

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "docs" / "template"
INI = """[pytest]
quantbench_matrix = conditions.toml
quantbench_prompts = two
quantbench_engine = inline
quantbench_no_probes = yes
quantbench_profile = quick
"""
MATRIX = """control = false
[methods]
stub = ["exact"]
[conditions]
reference = "stub/exact"
output_tokens = 4
answer_tokens = 4
continuation_tokens = 8
"""
DISTURBED = """
from dataclasses import replace
from quantbench.running import again, runner

measured, seen = runner.measured, []

def disturbed(case, *others):
    record = measured(case, *others)
    precision = case.scenario.variant.precision
    seen.append(precision)
    noise = {"exact": True, "noisy": seen.count("noisy") == 1}[precision] and record.values["disturbed"] is False
    told = {"disturbed": noise, "disturbance": "told so"} if noise else {}
    return replace(record, values={**record.values, **told, "stub_answers": len(seen)})

runner.measured = disturbed
again.measure_again.__kwdefaults__["busy"] = lambda: ""
"""
TESTS = """
import pytest

@pytest.fixture(scope="module")
def noisy(quantbench_measure):
    return quantbench_measure("canary", "stub/noisy")

@pytest.mark.quality
def test_quality(noisy):
    assert 0 < noisy.kld_mean < 100
    assert noisy.kld_mean.surely_above(1e-6)
    assert noisy.weight_bytes == 1_000_000
    assert (noisy.kernel, noisy.status) == ("stub", "ok")

def test_speed_after_a_second_try(noisy):
    assert noisy.decode_tps > 0
    assert noisy.attempts == 2

def test_speed_on_a_busy_machine(quantbench_measure):
    assert quantbench_measure("canary", "stub/exact").decode_tps > 0

@pytest.mark.quality
def test_too_far(noisy):
    assert noisy.kld_mean < 1e-9

def test_not_surely(noisy):
    assert noisy.kld_mean.surely_below(1e-9)

def test_computed(noisy):
    larger = noisy.kld_mean * 2
    assert larger < 1e-9

def test_missing(noisy):
    assert noisy.call_s < 1

def test_skipped(quantbench_measure):
    quantbench_measure("canary", "stub/refused")

def test_failed(quantbench_measure):
    quantbench_measure("canary", "stub/error")

def test_misspelt(quantbench_measure):
    quantbench_measure("canary", "stub/noise")

def test_other_conditions(quantbench_measure):
    quantbench_measure("canary", "stub/noisy", threads=3)

def test_whole_session(quantbench_measure):
    quantbench_measure("canary", "stub/noisy", profile="quick")

def test_no_setting(quantbench_measure):
    quantbench_measure("canary", "stub/noisy", thread=3)

def test_at_run_time(request):
    assert request.getfixturevalue("quantbench_measure")("canary", "stub/noisy").kld_mean > 0

def test_of_something_else():
    assert [1] == [2]
"""
COMMON = ("-p", "quantbench.plugin", "-p", "benchmark", "--strict-markers", "-o", "markers=quality: bytes and distances")


@dataclass(frozen=True)
class Ran:
    """A run of pytest: its name, where it was, its exit code, and what it printed."""

    name: str
    folder: Path
    code: int
    text: str

    def failure(self, test: str) -> str:
        """What it printed about a test that failed."""
        parts = re.split(r"^_{3,} (\w+) _{3,}$", self.text.partition("short test summary")[0], flags=re.MULTILINE)
        return dict(zip(parts[1::2], parts[2::2], strict=True))[test]

    @property
    def outcomes(self) -> Mapping[str, str]:
        """By test, how it ended."""
        ends = {"failure": "FAILED", "error": "ERROR", "skipped": "SKIPPED"}
        found: dict[str, str] = {}
        for case in ElementTree.parse(self.folder / f"{self.name}.xml").iter("testcase"):  # noqa: S314 - our own file
            found[str(case.get("name"))] = next((ends[each.tag] for each in case if each.tag in ends), "PASSED")
        return found


def _environment(stub_path: Path, cache: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "COLUMNS")}
    stubs = {"PYTHONPATH": str(stub_path), "STUB_UNWATCHED": "1", "STUB_WITHOUT_TORCH": "1"}
    return {**kept, **stubs, "QUANTBENCH_CACHE": str(cache), "COLUMNS": "200"}


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, stub_path: Path, stub_cache: Callable[[Path], Path], one_after_another: str
) -> Mapping[str, Ran]:
    """The tests above: all of them, those that failed once more, and some, which are measured beside each other."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in {
        "pytest.ini": INI, "conditions.toml": MATRIX, "conftest.py": DISTURBED, "test_own.py": TESTS,
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    variables = _environment(stub_path, stub_cache(folder))
    runs = {
        "all": [*COMMON, "-rs", "--benchmark-json=out.json", "--junit-xml=all.xml"],
        "failed": [*COMMON, "--lf", "--quantbench-results=failed", "--junit-xml=failed.xml"],
        "marked": [*COMMON, "-m", "quality", "-k", "not too", "--quantbench-results=marked", "--junit-xml=marked.xml"],
        "bad": [*COMMON, "--quantbench-device=tpu"],
        "listed": [*COMMON, "--collect-only", "-q", "--quantbench-results=listed"],
    }
    done = subprocess.run(
        [sys.executable, "-c", one_after_another], cwd=folder, env={**variables, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        input=json.dumps(runs), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: Ran(name, folder, code, text) for name, (code, text) in json.loads(done.stdout).items()}


AGAIN = (
    "quantbench run --model=canary --method=stub --precision=noisy --prompts=two --matrix={folder}/conditions.toml "
    "--engine=inline --profile=quick --no-probes"
)
OF = "canary/stub-noisy/two, reference stub/exact, anchor stub/exact"


def test_each_test_ends_as_it_should(ran: Mapping[str, Ran]) -> None:
    assert ran["all"].code == pytest.ExitCode.TESTS_FAILED
    assert ran["all"].outcomes == {
        "test_quality": "PASSED", "test_speed_after_a_second_try": "PASSED", "test_speed_on_a_busy_machine": "SKIPPED",
        "test_too_far": "FAILED", "test_not_surely": "FAILED", "test_computed": "FAILED", "test_missing": "FAILED",
        "test_skipped": "SKIPPED", "test_failed": "FAILED", "test_misspelt": "FAILED", "test_other_conditions": "FAILED",
        "test_whole_session": "FAILED", "test_no_setting": "FAILED", "test_at_run_time": "PASSED",
        "test_of_something_else": "FAILED",
    }, ran["all"].text  # fmt: skip


def test_a_failed_comparison_says_figure_interval_reference_and_how_to_measure_again(ran: Mapping[str, Ran]) -> None:
    said = ran["all"].failure("test_too_far")
    assert re.search(r"^E +assert kld_mean [\d.]+ nats \([\d.]+ to [\d.]+\) < 1e-09$", said, flags=re.MULTILINE), said
    for line in (OF, "mean KL(reference || variant)", f"again: {AGAIN.format(folder=ran['all'].folder)}"):
        assert line in said
    assert said.count("again: quantbench run") == 1


def test_so_does_any_other_assertion_on_figures(ran: Mapping[str, Ran]) -> None:
    assert f"is not surely below 1e-09 [{OF}]" in ran["all"].failure("test_not_surely")
    for test in ("test_not_surely", "test_computed"):
        said = ran["all"].failure(test)
        lines = rf"^{re.escape(OF)}\n  kld_mean .* nats .*: mean KL\(reference \|\| variant\)$"
        assert re.search(lines, said, re.MULTILINE), said
        assert f"  again: {AGAIN.format(folder=ran['all'].folder)}" in said
    assert "again: " not in ran["all"].failure("test_of_something_else")


@pytest.mark.parametrize(
    ("test", "sentence"),
    [
        ("test_missing", "call_s: not measured: a model that reads tokens is timed by its answers [canary/stub-noisy/two, "),
        ("test_failed", "canary/stub-error/two: error, RuntimeError: the stub was told to fail"),
        ("test_misspelt", "unknown precision of stub 'noise'; did you mean 'noisy'"),
        ("test_other_conditions", "is measured in this run under other conditions (threads 0, not 3), and a run has one row"),
        ("test_whole_session", "profile holds for all tests of a session; give it to pytest, as --quantbench-profile"),
        ("test_no_setting", "unknown setting 'thread'; did you mean 'threads'"),
    ],
)
def test_what_cannot_be_measured_fails_with_the_reason(ran: Mapping[str, Ran], test: str, sentence: str) -> None:
    said = ran["all"].failure(test)
    assert sentence in said
    assert "quantbench/running" not in said, "none of it is the user's own"


def test_what_cannot_be_judged_here_is_skipped_with_the_reason(ran: Mapping[str, Ran]) -> None:
    said = ran["all"].text
    assert re.search(r"SKIPPED \[1\] test_own\.py:\d+: canary/stub-refused/two: the stub cannot run here", said), said
    assert re.search(r"SKIPPED \[1\] test_own\.py:\d+: decode_tps: not judged, as other work disturbed it: told so", said), said


def test_a_session_is_one_run_with_one_row_for_each_scenario(ran: Mapping[str, Ran]) -> None:
    rows = pd.read_parquet(ran["all"].folder / "results" / "scenarios")
    assert sorted(zip(rows.precision, rows.status, strict=True)) == [
        ("error", "error"), ("exact", "ok"), ("noisy", "ok"), ("refused", "skipped"),
    ]  # fmt: skip
    (run,) = pd.read_parquet(ran["all"].folder / "results" / "runs").to_dict("records")
    assert (run["planned"], run["finished"], run["ok"], run["interrupted"]) == (4, 4, 2, False)
    assert set(rows.run_id) == {run["run_id"]}
    assert ran["all"].text.count(f"results of run {run['run_id']}: ") == 1
    assert "Ship " not in ran["all"].text


def test_pytest_benchmark_gets_the_samples_of_each_scenario_once(ran: Mapping[str, Ran]) -> None:
    entries = json.loads((ran["all"].folder / "out.json").read_text())["benchmarks"]
    assert sorted(each["fullname"] for each in entries) == sorted(
        f"quantbench::{phase}[canary/stub-{precision}/two]"
        for phase in ("prefill", "decode")
        for precision in ("exact", "noisy")
    )
    samples = pd.read_parquet(ran["all"].folder / "results" / "samples")
    gaps = samples[(samples.phase == "gap") & (samples.scenario_id == "canary/stub-noisy/two")].groupby("round").value_s.mean()
    (entry,) = (each for each in entries if each["name"] == "decode[canary/stub-noisy/two]")
    assert entry["stats"]["data"] == pytest.approx(gaps.tolist())
    assert entry["group"] == "canary two decode"
    assert entry["params"] == {"quantbench_scenario": "canary/stub-noisy/two"}
    assert entry["extra_info"]["stub_answers"] == 2, "those of the second try"
    assert entry["options"]["timer"] == "worker_clock"


def test_junit_holds_the_scenarios(ran: Mapping[str, Ran]) -> None:
    cases = ElementTree.parse(ran["all"].folder / "all.xml").iter("testcase")  # noqa: S314 - our own file
    found = {case.get("name"): [each.get("value") for each in case.iter("property")] for case in cases}
    assert found["test_quality"] == ["canary/stub-noisy/two"]
    assert found["test_of_something_else"] == []


def test_last_failed_and_markers_select_and_only_what_is_selected_is_measured(ran: Mapping[str, Ran]) -> None:
    assert set(ran["failed"].outcomes) == {test for test, end in ran["all"].outcomes.items() if end == "FAILED"}
    assert set(ran["marked"].outcomes.items()) == {("test_quality", "PASSED")}
    assert pd.read_parquet(ran["marked"].folder / "marked" / "scenarios").scenario_id.tolist() == ["canary/stub-noisy/two"]
    assert ran["marked"].code == pytest.ExitCode.OK
    assert "Legend:" not in ran["marked"].text, "nobody asked for pytest-benchmark's table"
    assert not (ran["listed"].folder / "listed").exists()


def test_there_are_no_warnings(ran: Mapping[str, Ran]) -> None:
    assert " warning" not in ran["all"].text, ran["all"].text


def test_bad_options_are_one_sentence(ran: Mapping[str, Ran]) -> None:
    assert ran["bad"].code == pytest.ExitCode.USAGE_ERROR
    assert "quantbench: device 'tpu' is not known; use cpu, cuda or cuda:N" in ran["bad"].text
    assert "Traceback" not in ran["bad"].text


BESIDE = """
import pytest
from quantbench.suite.test_latency import test_decode

@pytest.mark.parametrize("number", range(2))
def test_quality(quantbench_measure, number):
    assert quantbench_measure("canary", "stub/noisy").kld_mean > 0

def test_speed(quantbench_measure):
    assert quantbench_measure("canary", "stub/noisy").decode_ratio > 0
"""


def test_beside_other_tests_nothing_is_timed_and_that_is_said_once(
    tmp_path: Path, stub_path: Path, stub_cache: Callable[[Path], Path]
) -> None:
    for name, text in {"pytest.ini": INI, "conditions.toml": MATRIX, "test_own.py": BESIDE}.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-n", "2", "-rs", "-p", "no:cacheprovider"]
    variables = _environment(stub_path, stub_cache(tmp_path))
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert re.search(r"=+ 2 passed, 2 skipped", done.stdout), done.stdout + done.stderr
    why = "nothing is timed in a worker of pytest-xdist, whose tests run beside others; for speeds, run without -n"
    assert f"decode_ratio: not measured: {why} [canary/stub-noisy/two" in done.stdout
    assert done.stdout.count(f"quantbench: {why}; rows: {tmp_path / 'results'}") == 1
    rows = pd.read_parquet(tmp_path / "results" / "scenarios")
    assert set(rows.status) == {"ok"}
    times = [*timed_columns(), "load_s", "import_s", "quantize_s", "memory_bandwidth_bps", "disturbed"]
    assert rows[times].isna().all(axis=None)
    assert rows[["kld_mean", "top1_agreement", "weight_bytes", "peak_rss_bytes", "exact_match"]].notna().all(axis=None)
    for reasons in map(json.loads, rows.null_reasons):
        names = ("decode_tps", "ttft_s", "itl_ratio", "load_s", "import_s", "energy_per_token_j")
        assert {reasons[name] for name in names} == {why}
    assert not (tmp_path / "results" / "samples").exists()


class TestTheFunction:
    """``quantbench.measure``, in a run of its own."""

    SETTINGS: Mapping[str, Any] = {
        "prompts": "two", "profile": "quick", "output_tokens": 4, "engine": "inline", "no_probes": True, "threads": 1,
    }  # fmt: skip

    def test_it_measures_and_stores(self, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QUANTBENCH_CACHE", str(shared_cache))
        monkeypatch.chdir(tmp_path)
        found = quantbench.measure("canary", "torch/bf16", results="mine", no_energy=True, **self.SETTINGS)
        assert 0 < found.kld_mean < 1
        assert found.weight_bytes > found.parameters
        (row,) = pd.read_parquet(tmp_path / "mine" / "scenarios").to_dict("records")
        assert (row["run_id"], row["kld_mean"], row["output_tokens"]) == (found.run_id, found.kld_mean, 4)
        assert json.loads(row["null_reasons"])["energy_per_token_j"].startswith("energy was not asked for: --no-energy")
        (run,) = pd.read_parquet(tmp_path / "mine" / "runs").to_dict("records")
        assert (run["planned"], run["finished"], run["ok"], run["interrupted"]) == (1, 1, 1, False)

    def test_it_need_not_store(self, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QUANTBENCH_CACHE", str(shared_cache))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty.txt").write_text("\n")
        with pytest.raises(quantbench.QuantbenchError, match=r"^canary/torch-bf16/empty: error, prompt set .* has no prompts"):
            quantbench.measure("canary", "torch/bf16", results=None, **{**self.SETTINGS, "prompts": "empty.txt"})
        assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]

    @pytest.mark.parametrize(
        ("variant", "settings", "sentence"),
        [
            ("gguf/q4_k", {}, "unknown precision of gguf 'q4_k'; did you mean 'q4_k_"),
            ("q4_k_m", {}, "'q4_k_m' names no variant; write METHOD/PRECISION, for example gguf/q4_k_m"),
            ("gguf/q4_k_m", {"prompts": "tenn"}, "unknown prompt set 'tenn'; did you mean 'ten'"),
            ("gguf/q4_k_m", {"thread": 2}, "unknown setting 'thread'; did you mean 'threads'"),
            ("gguf/q4_k_m", {"repeats": 2}, "unknown setting 'repeats'"),
            ("gguf/q4_k_m", {"threads": "two"}, "--threads 'two' is not a valid int; give a number"),
        ],
    )
    def test_what_does_not_exist_leaves_no_run_behind(
        self, variant: str, settings: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError, match=f"^{re.escape(sentence)}"):
            quantbench.measure("canary", variant, **settings)
        assert list(tmp_path.iterdir()) == []


class TestOneScenario:
    """What is measured for a model, a variant and the options of a session."""

    def test_its_conditions_are_the_options(self) -> None:
        options = RunOptions.read(lambda option: {"device": "cuda:1", "prompts": "two"}.get(option.key, option.default))
        found = single(options, "org/model", "gguf/q8_0")
        assert (found.model, found.prompts, found.conditions.device) == ("org/model", "two", "cuda:1")
        assert found.variant == Variant(method="gguf", precision="q8_0")
        assert single(options, "org/model", "gguf/q8_0", "ten@8") == Scenario(
            model="org/model", variant=found.variant, prompts="ten", batch=8, conditions=found.conditions
        )

    def test_of_several_prompt_sets_one_must_be_named(self) -> None:
        options = RunOptions.read(lambda option: {"prompts": "two,ten"}.get(option.key, option.default))
        with pytest.raises(UsageError, match=r"^one prompt set is measured at a time, and the options name two, ten; name one"):
            single(options, "canary", "gguf/q8_0")
        assert single(options, "lstm", "torch-dynamic/int8").prompts == "seeded"

    def test_every_condition_with_an_option_can_be_set(self) -> None:
        assert set(OF_A_SCENARIO) == set(Conditions.__dataclass_fields__) & set(RunOptions.__dataclass_fields__)

    def test_the_command_asks_for_the_same_scenario(self) -> None:
        given = {"device": "cuda", "profile": "quick", "trust_remote_code": True, "results": "r", "repeats": "3"}
        options = RunOptions.read(lambda option: given.get(option.key, option.default))
        variant = Variant(method="gguf", precision="q8_0")
        scenario = Scenario(model="./my model", variant=variant, prompts="a b.txt", batch=2)
        assert again(options, scenario) == (
            "quantbench run '--model=./my model' --method=gguf --precision=q8_0 '--prompts=a b.txt@2' --device=cuda "
            "--profile=quick --trust-remote-code"
        )


@pytest.mark.usefixtures("artifacts")
def test_the_template_and_the_page_hold(tmp_path: Path, warm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """The project that people copy runs as it stands, but for the test of a speed."""
    project = shutil.copytree(TEMPLATE, tmp_path / "template")
    short = ("--quantbench-output-tokens=4", "--quantbench-engine=inline")
    command = [sys.executable, "-m", "pytest", "-m", "not speed", "-p", "no:cacheprovider", *short]
    kept = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    plugin = ["-p", "quantbench.plugin"] if not _installed() else []
    variables = {**kept, "PYTHONPATH": str(ROOT)}
    done = warm([*command, *plugin], cwd=project, env=variables)
    assert re.search(r"=+ 2 passed, 1 deselected", done.stdout), done.stdout
    page = (ROOT / "docs" / "how-to" / "own-tests.md").read_text(encoding="utf-8")
    assert (TEMPLATE / "tests" / "test_quantized.py").read_text(encoding="utf-8").partition("import pytest")[2] in page


def _installed() -> bool:
    from importlib.metadata import entry_points

    return any(point.value == "quantbench.plugin" for point in entry_points(group="pytest11"))
