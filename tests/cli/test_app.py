"""The command line as a whole: light to start, one sentence an error, exit codes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from quantbench.cli.app import app
from quantbench.cli.guard import DEBUG, guarded
from quantbench.cli.output import paragraph
from quantbench.core.errors import QuantbenchError, UsageError

COMMANDS = (
    "pick", "plan", "run", "tables", "recommend", "compare", "contrast", "report", "export", "methods", "metrics", "models",
    "quantize", "doctor",
)  # fmt: skip
HEAVY = ("torch", "pandas", "pyarrow", "transformers", "numpy", "scipy", "llama_cpp", "bitsandbytes", "pytest")


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("line", ["--help", "run --help", "tables --help", "methods", "metrics", "models", "doctor --help"])
def test_nothing_heavy_is_imported_to_say_what_there_is(line: str) -> None:
    code = (
        "import sys\nfrom quantbench.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"sys.stderr.write(' '.join(name for name in {HEAVY} if name in sys.modules))"
    )
    done = _python(code, *line.split())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout


def test_help_lists_every_command_under_a_heading_and_fits_a_screen() -> None:
    text = CliRunner().invoke(app, ["--help"]).stdout
    for name in COMMANDS:
        assert text.count(f"\n  {name} ") == 1
    assert "..." not in text.replace("COMMAND [ARGS]...", "")
    *_, measure, read, look_up = text.split("\n\n")
    assert [group.splitlines()[0] for group in (measure, read, look_up)] == ["Measure:", "Read:", "Look up:"]
    begins = {re.search(r"  [A-Z]", line[2:]).start() for group in (measure, read, look_up) for line in group.splitlines()[1:]}  # type: ignore[union-attr]
    assert len(begins) == 1  # what commands do begins in one column
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 36


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_80_columns_and_is_not_cut(name: str) -> None:
    text = CliRunner().invoke(app, [name, "--help"]).stdout
    assert text
    assert max(map(len, text.splitlines())) <= 80


def test_version() -> None:
    from importlib.metadata import version

    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"quantbench {version('quantbench')}\n")


@pytest.mark.parametrize("line", ["", "nonesuch", "methods --nonesuch", "methods --format xml", "quantize"])
def test_a_wrong_command_line_is_a_usage_error(line: str) -> None:
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def _guarded(error: BaseException) -> typer.Typer:
    one = typer.Typer()

    def fail() -> None:
        raise error

    one.command()(guarded(fail))
    return one


class _SpecialError(QuantbenchError):
    exit_code = 4


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("no such thing 'x'; known: y"), 2, "no such thing 'x'; known: y"),
        (_SpecialError("not enough rows"), 4, "not enough rows"),
        (PermissionError(13, "Permission denied", "/some/where"), 2, "Permission denied: /some/where"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (ValueError("one\n  two"), 1, "unexpected ValueError: one two; quantbench --debug COMMAND shows where"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (UsageError("pip install '.[gguf]'"), 2, "pip install '.[gguf]'"),  # which rich takes for no style
    ],
)
def test_an_error_is_one_sentence_with_its_exit_code(error: BaseException, code: int, said: str) -> None:
    result = CliRunner().invoke(_guarded(error), [])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"quantbench: {said}\n")


def test_the_exit_code_of_a_command_passes_through() -> None:
    result = CliRunner().invoke(_guarded(typer.Exit(3)), [])
    assert (result.exit_code, result.output) == (3, "")


def test_debug_adds_the_traceback() -> None:
    token = DEBUG.set(True)
    try:
        result = CliRunner().invoke(_guarded(UsageError("no")), [])
    finally:
        DEBUG.reset(token)
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("\nquantbench: no\n")


def test_the_global_debug_option_reaches_a_command() -> None:
    arguments = ["run", "--model", "nonesuch"]
    assert "Traceback" not in CliRunner().invoke(app, arguments).stderr
    assert "Traceback" in CliRunner().invoke(app, ["--debug", *arguments]).stderr
    assert "Traceback" not in CliRunner().invoke(app, arguments).stderr


def test_long_messages_are_not_wrapped_when_not_on_a_terminal() -> None:
    text = "word " * 100 + "end"
    assert CliRunner().invoke(_guarded(UsageError(text)), []).stderr == f"quantbench: {text}\n"


def test_results_are_wrapped_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = "ship gguf/q4_k_m under 4 GiB"
    assert paragraph(text) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert paragraph(text) == "ship gguf/q4_k_m\nunder 4 GiB"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = [sys.executable, "-c", "from quantbench.cli import main; main()", "metrics"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""


def test_main_exits_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from quantbench.cli import main

    monkeypatch.setattr(sys, "argv", ["quantbench", "run", "--model", "nonesuch"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
