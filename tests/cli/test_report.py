"""``quantbench report``: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantbench.cli.app import app
from quantbench.core.install import install_hint
from quantbench.core.machine import Machine
from quantbench.core.record import Record, Status
from quantbench.core.scenario import Conditions, Scenario, Variant
from quantbench.results.store import Run, Store


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A run with a reference and one variant of a model."""
    folder = tmp_path / "results"
    machine = Machine(cpu="Example CPU", cpus=2, memory_bytes=2**33, isa="avx2", system="Linux x86_64")
    started = datetime(2026, 1, 1, tzinfo=UTC)
    run = Run(
        machine=machine, versions={}, command="pytest", commit="", profile="quick", engine="inline", run_id="one",
        started_at=started,
    )  # fmt: skip
    store = Store(str(folder), run)
    for precision, size, kld in (("fp32", 4000, 0.0), ("fp16", 2000, 1e-4)):
        scenario = Scenario(
            model="some/model", prompts="ten", variant=Variant(method="torch", precision=precision), conditions=Conditions()
        )
        values = {"weight_bytes": size, "decode_tps": 10.0, "kld_mean": kld}
        store.append(
            Record(scenario=scenario, scenario_key="k" * 64, status=Status.OK, values=values), instrument_check=False
        )  # fmt: skip
    return folder


def _run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["report", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_page_is_written_and_its_run_named(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    code, stdout, stderr = _run("-o", str(path), "--results", str(results))
    assert (code, stderr) == (0, "")
    assert stdout.startswith(f"{path}: run one, 2 rows, ")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_picture_is_written_where_the_name_asks_for_one(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.PNG"
    assert _run("-o", str(path), "--results", str(results), "--model", "some/model")[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_results_there_is_a_sentence_and_code_4(tmp_path: Path) -> None:
    code, stdout, stderr = _run("-o", str(tmp_path / "out.html"), "--results", str(tmp_path / "nothing"))
    assert (code, stdout) == (4, "")
    assert stderr.startswith("quantbench: no results of table 'scenarios' under")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "report.pdf"], "'report.pdf' is neither a page nor a picture; end its name in .html, .png or .svg"),
        (["--run", "onw"], "unknown run 'onw'; did you mean 'one'?"),
        (["--model", "some/modle"], "unknown model 'some/modle'; did you mean 'some/model'?"),
    ],
)
def test_what_cannot_be_asked(
    results: Path, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run(*arguments, "--results", str(results)) == (2, "", f"quantbench: {said}\n")
    assert not (tmp_path / "report.html").exists()


def test_a_missing_library_is_named_with_its_pip_line(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    code, stdout, stderr = _run("-o", str(tmp_path / "out.html"), "--results", str(results))
    assert (code, stdout) == (2, "")
    assert stderr == f"quantbench: a report needs vl-convert-python, not installed; {install_hint('report')}\n"


def test_a_place_that_is_not_there_is_a_sentence(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "no" / "out.html"
    assert _run("-o", str(path), "--results", str(results)) == (2, "", f"quantbench: No such file or directory: {path}\n")
