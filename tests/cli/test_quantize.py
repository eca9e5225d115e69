"""``quantbench quantize``: a whole folder or none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from quantbench.cli.app import app
from quantbench.core.errors import ModelError
from quantbench.core.install import install_hint
from quantbench.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from quantbench.core.scenario import Scenario
    from quantbench.methods import Settings


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> list[tuple[Scenario, Settings]]:
    """Method ``torch`` writes two small files and needs nothing; what it was called with."""
    assert own_cache
    calls: list[tuple[Scenario, Settings]] = []

    def save(scenario: Scenario, settings: Settings, out: Path) -> None:
        calls.append((scenario, settings))
        (out / "config.json").write_text("{}")
        (out / "tokenizer_config.json").write_text("the saver's own")
        (out / "model.safetensors").write_bytes(b"x" * 1000)

    monkeypatch.setattr(METHODS["torch"], "requires", ())
    monkeypatch.setattr(METHODS["torch"], "saver", save)
    return calls


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder with one tensor and a tokenizer."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("tokens")
    (folder / "tokenizer_config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    return folder


@pytest.fixture
def quantize(checkpoint: Path) -> Callable[..., Any]:
    def invoke(out: Path, *, model: str = "", method: str = "torch", precision: str = "fp16") -> Any:
        arguments = ["quantize", model or str(checkpoint), "--method", method, "--precision", precision, "-o", str(out)]
        return CliRunner().invoke(app, arguments)

    return invoke


def test_it_says_where_and_how_many_bytes(saved: Any, quantize: Any, tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "a" / "b"
    result = quantize(out)
    assert (result.exit_code, result.stderr) == (0, "")
    size = sum(path.stat().st_size for path in out.iterdir())
    assert result.stdout == f"torch/fp16 of {checkpoint}: {size} bytes (1.02 kB), 4 files in {out}\n"
    scenario, settings = saved[0]
    assert scenario.variant.name == "torch/fp16"
    assert settings.checkpoint.path == checkpoint
    assert settings.threads >= 1


@pytest.mark.usefixtures("saved")
def test_the_tokenizer_comes_along_and_the_savers_own_files_win(quantize: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert quantize(out).exit_code == 0
    assert (out / "tokenizer.json").read_text() == "tokens"
    assert (out / "tokenizer_config.json").read_text() == "the saver's own"


def test_a_folder_with_something_in_it_is_left_alone(saved: Any, quantize: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("keep")
    result = quantize(out)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"quantbench: folder {out} is not empty; give another one with -o, or empty it first\n"
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert saved == []


def test_a_file_is_no_folder(saved: Any, quantize: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("keep")
    result = quantize(out)
    assert (result.exit_code, result.stderr) == (2, f"quantbench: {out} is a file; give a folder with -o\n")
    assert saved == []


def _ready_file(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Method ``gguf`` writes these files and needs nothing."""

    def save(_scenario: Scenario, _settings: Settings, out: Path) -> None:
        for name in names:
            (out / name).write_bytes(b"GGUF")

    monkeypatch.setattr(METHODS["gguf"], "requires", ())
    monkeypatch.setattr(METHODS["gguf"], "saver", save)


@pytest.mark.usefixtures("own_cache")
def test_a_name_of_a_gguf_file_is_a_file(quantize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ready_file(monkeypatch, "model-q8_0.gguf")
    out = tmp_path / "a" / "mine.gguf"
    result = quantize(out, method="gguf", precision="q8_0")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith(f": 4 bytes (4 B), 1 file: {out}\n")
    assert out.read_bytes() == b"GGUF"
    assert [path.name for path in out.parent.iterdir()] == ["mine.gguf"]
    again = quantize(out, method="gguf", precision="q8_0")
    assert (again.exit_code, again.stdout) == (2, "")
    assert again.stderr == f"quantbench: {out} is there already; give another name with -o, or remove it first\n"


@pytest.mark.usefixtures("saved")
def test_a_file_is_not_written_where_a_folder_is_needed(quantize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "is the name of a GGUF file, and torch writes a folder; give a folder with -o"
    assert folder in quantize(tmp_path / "mine.gguf").stderr
    _ready_file(monkeypatch, "model-00001-of-00002.gguf", "model-00002-of-00002.gguf")
    result = quantize(tmp_path / "mine.gguf", method="gguf", precision="q8_0")
    assert result.exit_code == 2
    assert "is split into 2 files, and " in result.stderr
    assert "part of a split file" in quantize(tmp_path / "x-00001-of-00002.gguf", method="gguf", precision="q8_0").stderr
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.usefixtures("saved")
def test_a_saver_that_fails_leaves_nothing(quantize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(scenario: Scenario, settings: Settings, out: Path) -> None:
        (out / "half").write_text("half")
        raise ModelError(f"{scenario.model} cannot be quantized with {settings.threads} threads")

    monkeypatch.setattr(METHODS["torch"], "saver", fail)
    before = sorted(tmp_path.rglob("*"))
    result = quantize(tmp_path / "out")
    assert result.exit_code == 2
    assert "cannot be quantized" in result.stderr
    assert [path for path in sorted(tmp_path.rglob("*")) if "cache" not in path.parts] == before


@pytest.mark.usefixtures("saved")
def test_a_method_that_cannot_write_names_others(quantize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS["bitsandbytes"], "saver", None)
    result = quantize(tmp_path / "out", method="bitsandbytes", precision="nf4")
    assert result.exit_code == 2
    assert result.stderr == (
        "quantbench: method 'bitsandbytes' cannot write a quantized model; methods that can: awq, gguf, gptq, prune, qat, "
        "torch, torchao\n"
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"method": "tork"}, "unknown method 'tork'; did you mean 'torch'?"),
        ({"precision": "fp17"}, "unknown precision of torch 'fp17'; did you mean 'fp16'"),
        ({"model": "./nonesuch"}, "model path './nonesuch' does not exist"),
    ],
)
@pytest.mark.usefixtures("saved")
def test_names_that_do_not_exist(quantize: Any, tmp_path: Path, asked: dict[str, str], said: str) -> None:
    result = quantize(tmp_path / "out", **asked)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"quantbench: {said}")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("saved")
def test_a_method_that_is_not_installed(quantize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS["torch"], "requires", ("a_module_that_nobody_has",))
    result = quantize(tmp_path / "out")
    assert result.exit_code == 2
    assert f"needs a_module_that_nobody_has, not installed; {install_hint('torch')}" in result.stderr
