"""``quantbench run``: options of the one table become pytest's, and pytest's exit codes become the command's."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from quantbench.cli import run
from quantbench.cli.app import app
from quantbench.planning.options import OPTIONS
from quantbench.plugin import FAILED_COMPARISON

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PYTEST_OK = 0


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, list[str]]]:
    """Runs ``quantbench run`` with a pytest that only returns a code: (exit code, stderr, pytest's arguments)."""

    def invoke(*arguments: str, code: int = PYTEST_OK, comparison: str = "") -> tuple[int, str, list[str]]:
        calls: list[list[str]] = []

        def run_nothing(args: list[str], plugins: list[Any]) -> int:
            calls.append(args)
            config = SimpleNamespace(stash=pytest.Stash())
            if comparison:
                config.stash[FAILED_COMPARISON] = comparison
            plugins[0].pytest_unconfigure(config)
            return code

        monkeypatch.setattr(pytest, "main", run_nothing)
        result = CliRunner().invoke(app, ["run", *arguments])
        return result.exit_code, result.stderr, calls[0] if calls else []

    return invoke


def _own(arguments: list[str]) -> list[str]:
    return [each for each in arguments if each.startswith("--quantbench-")]


def test_what_is_not_given_is_not_passed_on_so_that_ini_keys_hold(sent: Any) -> None:
    code, stderr, arguments = sent()
    assert (code, stderr) == (0, "")
    assert arguments[:2] == ["--pyargs", "quantbench.suite"]
    assert _own(arguments) == []
    assert "-k" not in arguments


def test_every_setting_is_translated(sent: Any, tmp_path: Path) -> None:
    matrix = tmp_path / "m.toml"
    matrix.write_text('models = ["canary"]\n')
    values = {
        "model": "canary", "method": "torch", "precision": "fp32,bf16", "artifact": "mine=m.gguf", "prompts": "ten",
        "matrix": str(matrix),
        "reference": "torch/bf16", "results": "s3://bucket/results", "device": "cuda:1", "threads": "3", "context": "256",
        "output-tokens": "16", "answered-prompts": "4", "seed": "7",
        "engine": "inline", "profile": "quick", "timeout": "12.5", "keep-jobs": "jobs",
        "calibration": "text.txt", "server": "http://127.0.0.1:1/v1", "concurrency": "2", "chunks": "8", "repeats": "5",
        "resume": "last", "compare": "earlier", "fail-on": "never", "batch": "1,8", "decode-path": "static",
        "n-gpu-layers": "auto", "ray-address": "auto",
    }  # fmt: skip
    flags = [option.name for option in OPTIONS if option.kind == "flag"]
    assert {option.name for option in OPTIONS} == {*values, *flags}
    flags.remove("no-probes")  # the opposite of another
    given = [part for name, value in values.items() for part in (f"--{name}", value)] + [f"--{name}" for name in flags]
    code, stderr, arguments = sent(*given)
    assert (code, stderr) == (0, "")
    assert sorted(_own(arguments)) == sorted(
        [f"--quantbench-{name}={value}" for name, value in values.items()] + [f"--quantbench-{name}" for name in flags]
    )


def test_a_repeated_list_option_stays_repeated(sent: Any) -> None:
    _, _, arguments = sent("--method", "torch", "--method", "gguf")
    assert _own(arguments) == ["--quantbench-method=torch", "--quantbench-method=gguf"]


def test_zero_is_a_value(sent: Any) -> None:
    _, _, arguments = sent("--seed", "0")
    assert _own(arguments) == ["--quantbench-seed=0"]


def test_selection_and_report_are_pytests_own_options(sent: Any) -> None:
    _, _, arguments = sent("-k", "q4_k_m and decode", "--benchmark-json", "out/b.json")
    assert arguments[arguments.index("-k") + 1] == "q4_k_m and decode"
    assert "--benchmark-json=out/b.json" in arguments


@pytest.mark.parametrize(("pytest_code", "code"), [(0, 0), (1, 1), (2, 130), (3, 1), (4, 2), (5, 2), (77, 1)])
def test_exit_codes_are_translated(sent: Any, pytest_code: int, code: int) -> None:
    assert sent(code=pytest_code)[0] == code


@pytest.mark.parametrize(("comparison", "code"), [("regression", 3), ("insufficient", 4)])
def test_a_failed_comparison_has_a_code_of_its_own(comparison: str, code: int, sent: Any) -> None:
    assert sent("--compare", "earlier", code=1, comparison=comparison)[0] == code


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from quantbench.cli import main; main()", "run", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def test_nothing_selected_is_said_with_an_example(tmp_path: Path) -> None:
    done = _run(tmp_path, "-k", "nonesuch")
    assert done.returncode == 2
    example = "an example of a scenario's name is canary/torch-fp32/mixed"
    assert done.stderr == f"quantbench: nothing was selected by -k 'nonesuch'; {example}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "canry"], "quantbench: unknown model 'canry'; did you mean 'canary'?\n"),
        (["--engine", "proces"], "quantbench: unknown engine 'proces'; did you mean 'process'?\n"),
        (["--threads", "-1"], "quantbench: threads is -1; it cannot be negative\n"),
        (
            ["--matrix", "/nonesuch.toml"],
            "quantbench: matrix file /nonesuch.toml does not exist; give a TOML file with --matrix\n",
        ),
    ],
)
def test_what_cannot_be_is_said_before_pytest_says_anything(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = _run(tmp_path, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_a_number_is_a_number(sent: Any) -> None:
    code, stderr, arguments = sent("--threads", "many")
    assert (code, arguments) == (2, [])
    assert "'--threads'" in stderr


def test_help_names_every_setting_with_its_metavar() -> None:
    text = CliRunner().invoke(app, ["run", "--help"]).stdout
    for option in OPTIONS:
        assert f"--{option.name} {option.metavar}".rstrip() in text
    squeezed = " ".join(text.split())
    for option in OPTIONS:
        assert option.help in squeezed
    assert "(default: results)" in squeezed


@pytest.mark.parametrize(("found", "plugin"), [(["quantbench"], "quantbench"), ([], "quantbench.plugin")])
def test_the_plugin_is_registered_once(sent: Any, monkeypatch: pytest.MonkeyPatch, found: list[str], plugin: str) -> None:
    points = [EntryPoint(name=name, value="quantbench.plugin", group="pytest11") for name in found]
    monkeypatch.setattr(run, "entry_points", lambda group: points if group == "pytest11" else [])
    _, _, arguments = sent()
    assert arguments[arguments.index("-p") + 1] == plugin


def _collected(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import pytest; from quantbench.cli import run;"
        "raise SystemExit(pytest.main([*run._arguments({'method': ['torch']}, 'decode', None), '--collect-only', '-q']))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": "", "HOME": str(folder), **environment},
    )  # fmt: skip


@pytest.mark.parametrize("environment", [{}, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}])
def test_any_folder_will_do(tmp_path: Path, environment: dict[str, str]) -> None:
    done = _collected(tmp_path, **environment)
    assert "test_decode[canary/torch-fp32/mixed]" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
    assert "arning" not in done.stdout + done.stderr


def test_the_settings_of_the_project_around_do_not_matter_but_ours_do(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\n"
        'addopts = "--nonesuch"\npython_files = "check_*.py"\npython_functions = "check_*"\nfilterwarnings = ["error"]\n'
        'quantbench_precision = "bf16"\n'
    )
    (tmp_path / "conftest.py").write_text("raise SystemExit('loaded')\n")
    done = _collected(tmp_path)
    assert "test_decode[canary/torch-bf16/mixed]" in done.stdout, done.stdout + done.stderr
    assert "fp32" not in done.stdout
    assert not (tmp_path / ".pytest_cache").exists()
