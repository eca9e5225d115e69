"""``--quantbench-compare``: runs of the stub methods, one slowed and one made worse under the same name.

The delay is some twenty-five times a stub's own step, so that no noise of a shared machine decides these tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from quantbench.judge.compare.gate import gate
from quantbench.planning.options import OPTIONS
from quantbench.pytest_settings import raw_setting

if TYPE_CHECKING:
    from pathlib import Path

SCENARIO = "canary/stub-noisy/two"
ONE_AFTER_ANOTHER = """
import contextlib, gc, io, json, os, sys
import pytest
from quantbench.judge.compare import gate

def judged(*arguments, judge=gate.gate, **options):
    # scipy asks whatever stands for torch for its classes, also None, which keeps torch out
    kept = sys.modules.pop("torch")
    try:
        return judge(*arguments, **options)
    finally:
        sys.modules["torch"] = kept

gate.gate = judged
ends = {}
for name, variables, arguments in json.load(sys.stdin):
    os.environ.update(variables)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = pytest.main(arguments)
    ends[name] = int(code), out.getvalue()
    gc.freeze()  # else each collection before timed rounds goes through all that was imported
json.dump(ends, sys.stdout)
"""
BASE = ("--quantbench-matrix=matrix.toml", "--quantbench-engine=inline", "--quantbench-profile=quick", "--quantbench-no-probes")
NORMAL, SLOW, WORSE = (
    {"STUB_DELAY_S": delay, "STUB_NOISE": noise} for delay, noise in (("0", "0.3"), ("0.005", "0.3"), ("0", "0.6"))
)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory, stub_path: Path, shared_cache: Path) -> dict[str, tuple[int, str]]:
    """Exit code and output of each run."""
    folder = tmp_path_factory.mktemp("gate")
    (folder / "test_latency.py").write_text("from quantbench.suite.test_latency import test_decode\n")
    (folder / "matrix.toml").write_text(
        'control = false\nprompts = ["two"]\n[methods]\nstub = ["noisy"]\n'
        '[conditions]\nreference = "stub/exact"\noutput_tokens = 4\nanswer_tokens = 4\ncontinuation_tokens = 8\n'
    )
    often, twice = "--quantbench-repeats=5", "--quantbench-repeats=10"
    into = "--quantbench-results={}".format
    base = "--quantbench-compare=base"
    runs: list[tuple[str, dict[str, str], list[str]]] = [
        ("base", NORMAL, [into("base"), often]),
        ("once", NORMAL, [into("once"), base]),
        ("strict", NORMAL, [into("strict"), base, "--quantbench-fail-on=insufficient"]),
        ("slow", SLOW, [into("slow"), base, twice]),
        ("worse", WORSE, [into("worse"), base, "-q"]),
        ("shrug", WORSE, [into("shrug"), base, "--quantbench-fail-on=never"]),
        ("nothing", NORMAL, [into("nothing"), "--quantbench-compare=no-such-run"]),
        ("typo", NORMAL, [into("typo"), base, "--quantbench-fail-on=worst"]),
    ]
    asked = [(name, variables, [*BASE, "-p", "no:cacheprovider", *arguments]) for name, variables, arguments in runs]
    kept = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    stubs = {"PYTHONPATH": str(stub_path), "STUB_UNWATCHED": "1", "STUB_WITHOUT_TORCH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER], cwd=folder, env={**kept, **stubs, "QUANTBENCH_CACHE": str(shared_cache)},
        input=json.dumps(asked), capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return {name: (end[0], " ".join(end[1].split())) for name, end in found.items()}


def test_a_single_run_says_how_many_more_it_takes_and_passes(ends: dict[str, tuple[int, str]]) -> None:
    code, out = ends["once"]
    assert code == 0
    assert "Not enough data: 2 figures: the rule needs 5 processes per side: 4 more of the candidate" in out


def test_a_lack_of_data_fails_where_that_was_asked_for(ends: dict[str, tuple[int, str]]) -> None:
    assert ends["strict"][0] == 1


def test_a_slowdown_fails_the_run_and_is_named(ends: dict[str, tuple[int, str]]) -> None:
    code, out = ends["slow"]
    assert code == 1
    assert f"Regression: {SCENARIO} decode -9" in out


def test_a_worse_quantization_under_the_same_name_fails_the_run_and_is_named(ends: dict[str, tuple[int, str]]) -> None:
    code, out = ends["worse"]
    assert code == 1
    assert f"Regression: {SCENARIO} kld_mean +" in out


def test_a_regression_passes_where_nothing_is_to_fail(ends: dict[str, tuple[int, str]]) -> None:
    code, out = ends["shrug"]
    assert code == 0
    assert f"Regression: {SCENARIO} kld_mean +" in out


def test_a_baseline_that_is_not_there_is_said_at_the_end(ends: dict[str, tuple[int, str]]) -> None:
    code, out = ends["nothing"]
    assert code == 0
    assert "not compared with no-such-run: no run 'no-such-run' in" in out


def test_an_unknown_word_is_a_usage_error(ends: dict[str, tuple[int, str]]) -> None:
    code, out = ends["typo"]
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "unknown --fail-on 'worst'; did you mean 'worse'?" in out


def test_a_baseline_file_that_was_cut_short_is_said_and_ends_nothing(tmp_path: Path) -> None:
    """Also where warnings are errors: the run itself is over."""
    for name in ("base", "now"):
        folder = tmp_path / name / "scenarios" / "date=2026-01-01"
        folder.mkdir(parents=True)
        row = {
            "run_id": name, "started_at": datetime(2026, 1, 1, tzinfo=UTC), "repeat": 0, "scenario_id": SCENARIO,
            "status": "ok", "itl_s": 0.004, "prefill_tps": 3000.0,
        }  # fmt: skip
        pd.DataFrame([row]).to_parquet(folder / f"{name}-00000.parquet")
    (tmp_path / "base" / "scenarios" / "cut.parquet").write_bytes(b"PAR1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gate(str(tmp_path / "base"), str(tmp_path / "now"), "now", fail_on="worse", width=500)
    assert (found.ended, found.fails) == ("insufficient", False)
    assert found.sentence[0].startswith("Not enough data: 2 figures: the rule needs 5 processes per side")
    assert found.sentence[1].startswith("warning: ")
    assert "cut.parquet cannot be read and is left out" in found.sentence[1]


@pytest.mark.parametrize(("given", "found"), [("base", "root/base"), ("other", "other"), ("s3://bucket", "s3://bucket")])
def test_a_baseline_in_an_ini_file_lies_beside_it(given: str, found: str, tmp_path: Path) -> None:
    """Wherever pytest is started; what is no folder there names runs."""
    (tmp_path / "root" / "base").mkdir(parents=True)
    config: Any = SimpleNamespace(
        getoption=lambda _: None, getini=lambda _: given, rootpath=tmp_path / "root",
        invocation_params=SimpleNamespace(dir=tmp_path / "elsewhere"),
    )  # fmt: skip
    (option,) = [each for each in OPTIONS if each.name == "compare"]
    expected = str(tmp_path / found) if found.startswith("root") else found
    assert raw_setting(config, option) == expected
