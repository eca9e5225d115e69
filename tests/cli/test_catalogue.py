"""``quantbench methods``, ``metrics``, ``models`` and ``doctor``: what there is, and what is missing."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from quantbench.cli import catalogue, doctor
from quantbench.cli.app import app
from quantbench.core import machine
from quantbench.core.install import install_hint
from quantbench.core.record import Column
from quantbench.methods import METHODS
from quantbench.metrics import METRICS, all_columns
from quantbench.models import dummy_configs
from quantbench.runtimes.llama_cpp import probe

if TYPE_CHECKING:
    from pathlib import Path


NOTHING_SWEPT = {"places": 0, "size": 0}


def _said(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def _json(*arguments: str) -> Any:
    return json.loads(_said(*arguments, "--format", "json"))


@pytest.fixture
def gguf_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS["gguf"], "requires", ("a_module_that_nobody_has",))


def test_methods_are_listed_with_all_their_precisions_in_100_columns() -> None:
    text = _said("methods")
    assert max(map(len, text.splitlines())) <= 100
    for block, method in zip(text.split("\n\n"), METHODS, strict=True):
        words = " ".join(block.split())
        assert words.startswith(f"{method.name}: {method.about} {' '.join(each.name for each in method.precisions)}")


def test_methods_as_json_hold_the_bits() -> None:
    found = {each["method"]: each for each in _json("methods")}
    assert {each["precision"]: each["bits"] for each in found["torch"]["precisions"]} == {"fp32": 32, "fp16": 16, "bf16": 16}
    assert found["gguf"]["anchor"] == "gguf/f16"
    assert found["gguf"]["checkpoints"] == ["hf", "gguf"]


@pytest.mark.usefixtures("gguf_missing")
def test_a_method_that_is_not_installed_has_the_line_that_installs_it() -> None:
    block = next(block for block in _said("methods").split("\n\n") if block.startswith("gguf: "))
    assert block.splitlines()[-1] == f"  needs a_module_that_nobody_has, not installed; {install_hint('gguf')}"
    found = next(each for each in _json("methods") if each["method"] == "gguf")
    assert (found["installed"], found["missing"]) == (False, ["a_module_that_nobody_has"])
    assert found["install"] == install_hint("gguf")


def test_metrics_list_every_column_once() -> None:
    found = _json("metrics")
    assert [each["column"] for each in found] == [column.name for column in all_columns()]
    assert {each["metric"] for each in found} == {metric.name for metric in METRICS}
    bits = next(each for each in found if each["column"] == "bits_per_weight")
    assert bits == {
        "column": "bits_per_weight", "unit": "bits", "better": "lower", "metric": "memory",
        "doc": "bits that a parameter of the reference takes here", "formula": "8 * weight_bytes / parameters",
        "source": "llama.cpp prints it as BPW",
    }  # fmt: skip


def test_metrics_as_text_are_grouped_with_formula_and_source_below_each() -> None:
    lines = _said("metrics").splitlines()
    heads = [line for line in lines if line and not line.startswith(" ")]
    assert heads == [f"{metric.name}: {metric.about}" for metric in METRICS]
    columns = [line.split()[0].rstrip(":") for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert columns == [column.name for column in all_columns()]
    at = lines.index("  bits_per_weight (bits, lower is better): bits that a parameter of the reference takes here")
    assert lines[at + 1 : at + 3] == ["      = 8 * weight_bytes / parameters", "      source: llama.cpp prints it as BPW"]
    assert all(line == line.rstrip() for line in lines)


def test_metrics_of_some_names() -> None:
    assert [each["column"] for each in _json("metrics", "ttft_s", "load")] == ["ttft_s", "import_s", "load_s", "quantize_s"]
    assert [line.split(":")[0] for line in _said("metrics", "ttft_s").splitlines()] == [
        "latency", "  ttft_s (s, lower is better)", "      = median(t_first - t_request)", "      source",
    ]  # fmt: skip


def test_an_unknown_metric_is_a_usage_error_with_the_nearest_names() -> None:
    result = CliRunner().invoke(app, ["metrics", "tttft_s"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "unknown metric or column 'tttft_s'; did you mean 'ttft_s'" in " ".join(result.stderr.split())


def test_on_a_terminal_metrics_are_wrapped_under_their_column(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    catalogue.metrics(["weight_bytes"])
    _, *lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert [line for line in lines if not line.startswith("      ")] == [lines[0]]
    assert " ".join(" ".join(lines).split()).startswith("weight_bytes (bytes, lower is better): everything that stores weights")


def test_a_metric_from_elsewhere_needs_neither_formula_nor_source() -> None:
    assert catalogue.column_lines(Column("stub_answers", "answers", kind="int", doc="answers seen")) == [
        "  stub_answers (answers): answers seen"
    ]


def test_models_name_the_built_in_ones_and_the_other_forms() -> None:
    text = _said("models")
    assert "\ncanary  " in text
    for form in ("NAME", "FOLDER", "FILE.gguf", "ORG/NAME[@REVISION]", "http://HOST[:PORT]/v1[#MODEL]"):
        assert f"\n{form} " in text
    found = _json("models")
    assert found["built_in"][0]["model"] == "canary"
    assert found["built_in"][0]["instrument_check"] is True
    assert len(found["forms"]) == 7
    assert found["dummies"] == list(dummy_configs())
    assert " ".join(text.split()).endswith(", ".join(dummy_configs()))
    assert max(map(len, text.splitlines())) <= 100


@pytest.fixture
def well(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Path:
    """A doctor's visit without a probe process: llama.cpp is there and its extra buffers work."""
    monkeypatch.setattr(doctor, "find_spec", lambda _: True)
    monkeypatch.setattr(probe, "extra_buffers_work", lambda: True)
    return own_cache


def test_doctor_reports_machine_packages_methods_and_cache(well: Path) -> None:
    (well / "gguf").mkdir(parents=True)
    (well / "gguf" / "model.gguf").write_bytes(b"x" * 1234)
    found = _json("doctor")
    here = machine.describe()
    assert found["machine"]["cpus"] == here.cpus
    assert found["machine"]["memory_bytes"] == here.memory_bytes
    assert found["packages"]["pytest"] == pytest.__version__
    assert [each["method"] for each in found["methods"]] == [method.name for method in METHODS]
    assert found["cache"] == {"folder": str(well), "bytes": 1234, "files": 1, "writable": True, "swept": NOTHING_SWEPT}
    assert found["llama_cpp_extra_buffers"] == {"work": True, "note": ""}
    text = _said("doctor")
    assert f"{well}: 1.23 kB in 1 file, writable" in text
    assert f"{here.cpu}, {here.cpus} cores" in text


def test_doctor_makes_no_own_cache(well: Path) -> None:
    found = _json("doctor")["cache"]
    assert found == {"folder": str(well), "bytes": 0, "files": 0, "writable": True, "swept": NOTHING_SWEPT}
    assert not well.exists()


def test_doctor_says_how_to_get_out_of_a_cache_that_cannot_be_written(
    well: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert well
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    monkeypatch.setenv("QUANTBENCH_CACHE", str(blocked))
    assert "not writable; set QUANTBENCH_CACHE to a folder that is" in _said("doctor")


@pytest.mark.usefixtures("well", "gguf_missing")
def test_doctor_says_what_is_missing_and_how_to_get_it() -> None:
    assert f"no: a_module_that_nobody_has; {install_hint('gguf')}" in _said("doctor")


@pytest.mark.usefixtures("well")
def test_doctor_reports_a_build_whose_buffers_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "extra_buffers_work", lambda: False)
    assert "do not work (this build crashes with them" in _said("doctor")


@pytest.mark.usefixtures("well")
def test_doctor_survives_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise OSError("libllama.so: cannot open\nshared object file")

    monkeypatch.setattr(probe, "extra_buffers_work", broken)
    found = _json("doctor")["llama_cpp_extra_buffers"]
    assert found == {"work": None, "note": "not probed: OSError: libllama.so: cannot open shared object file"}


@pytest.mark.usefixtures("well")
def test_doctor_does_not_probe_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "gguf" else True)
    assert _json("doctor")["llama_cpp_extra_buffers"] == {"work": None, "note": "not probed: gguf not installed"}


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize(
    ("torch", "note"),
    [("2.13.0+cu130", ""), ("2.13.0+cpu", "torch 2.13.0+cpu is a CPU build; --device cuda needs a CUDA build of torch")],
)
def test_doctor_tells_a_cpu_build_beside_a_device(monkeypatch: pytest.MonkeyPatch, torch: str, note: str) -> None:
    gpu = machine.Machine(cpu="c", cpus=1, memory_bytes=2**30, isa="", system="Linux", gpus=("NVIDIA T4",), driver="580.1")
    monkeypatch.setattr(machine, "describe", lambda: gpu)
    monkeypatch.setattr(machine, "versions", lambda _: {"torch": torch})
    assert _json("doctor")["cuda"] == {"devices": ["NVIDIA T4"], "driver": "580.1", "note": note}
    assert "NVIDIA T4" in _said("doctor")


@pytest.mark.usefixtures("well")
def test_doctor_says_why_there_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "no_gpu", lambda: "CUDA_VISIBLE_DEVICES= hides 2 GPUs")
    here = machine.Machine(cpu="c", cpus=1, memory_bytes=2**30, isa="", system="Linux")
    monkeypatch.setattr(machine, "describe", lambda: here)
    assert _json("doctor")["cuda"] == {"devices": [], "driver": "", "note": "CUDA_VISIBLE_DEVICES= hides 2 GPUs"}
    assert "none (CUDA_VISIBLE_DEVICES= hides 2 GPUs)" in _said("doctor")


@pytest.mark.parametrize("part", ["_cache", "_cuda", "_packages", "_methods", "_machine", "_extra_buffers"])
def test_doctor_still_answers_when_something_is_broken(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("out of\norder")

    monkeypatch.setattr(doctor, part, fails)
    (problem,) = _json("doctor")["problems"]
    assert problem.endswith(": RuntimeError: out of order")
    assert problem in _said("doctor")


def test_doctor_names_another_project_with_the_same_module(monkeypatch: pytest.MonkeyPatch) -> None:
    records = {"quantbench": "quantbench/__init__.py,,", "stranger": "LICENSE,,\nquantbench/a.py,,", "other": "quantbenchx/a"}
    installed = [SimpleNamespace(name=name, read_text={"RECORD": record}.get) for name, record in records.items()]
    monkeypatch.setattr(doctor, "distributions", lambda: [*installed, SimpleNamespace(name="bare", read_text=lambda _: None)])
    (problem,) = _json("doctor")["problems"]
    assert problem == "stranger, another project, has a module quantbench too; uninstall it, and install this again"


def test_doctor_names_a_plug_in_that_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from quantbench.core.registry import Registry

    monkeypatch.setattr(Registry, "broken", {"hqq = gone:METHOD": "ImportError: gone"})
    (problem,) = _json("doctor")["problems"]
    assert problem == "plug-in 'hqq = gone:METHOD' cannot be imported and is left out: ImportError: gone"
