"""Command lines and files that nobody means well: one bounded sentence and exit code 2, and no waiting."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from quantbench.cli.app import app
from quantbench.core.errors import UsageError
from quantbench.planning.options import RunOptions, plan

if TYPE_CHECKING:
    from pathlib import Path

DIGITS = "9" * 5000
LONG = "y" * 90_000
DEEP = "[" * 20_000


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder has a FIFO of every name, and files that no parser survives."""
    monkeypatch.chdir(tmp_path)
    for name in ("fifo", "fifo.json", "fifo.html"):
        os.mkfifo(name)
    (tmp_path / "dangling").symlink_to("nonesuch")  # a folder was looked for there without an end
    (tmp_path / "deep.toml").write_text(f"models = {DEEP}")
    (tmp_path / "dotted.toml").write_text(".".join("a" * 3000) + " = 1")
    (tmp_path / "digits.toml").write_text(f"[conditions]\nseed = {DIGITS}")
    (tmp_path / "hex.toml").write_text(f"[conditions]\nseed = 0x{'f' * 5000}")
    (tmp_path / "deep.json").write_text(DEEP)
    (tmp_path / "digits.json").write_text(f'{{"model_type": "llama", "vocab_size": {DIGITS}}}')
    (tmp_path / "long.toml").write_text(f'models = ["canary"]\nprompts = "{LONG}"')


def _refused(*line: str) -> str:
    result = CliRunner().invoke(app, line)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr) < 3000
    assert "unexpected" not in result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("plan", "~nosuchuser/model"), "path '~nosuchuser/model' does not exist"),
        (("pick", "~nosuchuser/model"), "model path '~nosuchuser/model' does not exist"),
        (("plan", "fifo"), "it is no regular file"),
        (("plan", "/dev/zero"), "it is no regular file"),
        (("plan", "deep.json"), "it is nested too deeply"),
        (("plan", "digits.json"), "a number in it has too many digits"),
        (("plan", LONG), "unknown model 'yyy"),
        (("plan", "canary", "--method", LONG), "unknown method 'yyy"),
        (("plan", "canary", "--batch", DIGITS), "Invalid value for '--batch'"),
        (("report", "-o", "fifo.html"), "fifo.html is not a regular file"),
        ((LONG,), "No such command 'yyy"),
    ],
)
def test_a_command_line_that_cannot_be_meant(line: tuple[str, ...], said: str) -> None:
    assert said in _refused(*line)


def _planned(**given: Any) -> object:
    return plan(RunOptions.read(lambda option: given.get(option.key, option.default)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "~nosuchuser"}, "model path '~nosuchuser' does not exist"),
        ({"model": LONG}, r"unknown model 'yyy.*known: canary"),
        ({"batch": DIGITS}, "is not a number of sequences"),
        ({"prompts": f"tokens:{DIGITS}"}, "has no length"),
        ({"prompts": f"ten@{DIGITS}"}, "a batch of at least 1"),
        ({"device": f"cuda:{DIGITS}"}, "is not known; use cpu"),
        ({"repeats": "1000000000"}, "--repeats 1000000000 plans [0-9,]*000,000,000 scenarios; at most 1,000,000 are planned"),
        ({"threads": "9" * 30}, "threads is above 1000000000000"),
        ({"repeats": DIGITS}, "is not a valid int"),
        ({"matrix": "deep.toml"}, "is not valid TOML: it is nested too deeply"),
        ({"matrix": "dotted.toml"}, "unknown key 'a'"),
        ({"matrix": "digits.toml"}, "is not valid TOML: a number in it has too many digits"),
        ({"matrix": "hex.toml"}, "seed is above"),
        ({"matrix": "long.toml"}, r"expected a list, found 'yyy.*yyy'"),
        ({"keep_jobs": "fifo"}, "--keep-jobs 'fifo' is no folder"),
        ({"keep_jobs": "dangling"}, "--keep-jobs 'dangling' is no folder"),
        ({"matrix": "fifo"}, "cannot be read .it is no regular file"),
        ({"matrix": "/dev/zero"}, "cannot be read .it is no regular file"),
    ],
)
def test_options_and_matrix_files_that_cannot_be_meant(given: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        _planned(**given)
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("name", ["engine", "profile", "results", "repeats", "fail-on", "threads"])
def test_an_empty_value_is_no_value(name: str) -> None:
    assert RunOptions.read(lambda option: "" if option.name == name else option.default) == RunOptions.read(
        lambda option: option.default
    )


def test_a_run_with_such_options_ends_with_one_sentence(tmp_path: Path) -> None:
    """Through pytest, whose collection would show a traceback."""
    command = [sys.executable, "-c", "from quantbench.cli import main; main()", "run", "--model", "~nosuchuser/\udcff"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("quantbench: model path '~nosuchuser/\\udcff' does not exist")
    assert done.stderr.count("\n") == 1


def test_pytest_says_one_sentence_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(quantbench): ...")
    done = pytester.runpytest_subprocess("--quantbench-compare", "y" * 5000, "--quantbench-model", "~nosuchuser")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["ERROR: quantbench: model path '~nosuchuser' does not exist*"])
    assert "Traceback" not in done.stdout.str() + done.stderr.str()


def test_a_report_of_pytest_benchmark_goes_to_a_file(pytester: pytest.Pytester) -> None:
    done = pytester.runpytest_subprocess("--benchmark-json=/dev/full")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["ERROR: --benchmark-json: /dev/full is not a regular file; name another"])
