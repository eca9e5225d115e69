"""Shell completion, as bash and zsh ask for it: through variables of the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantbench.cli.app import app
from quantbench.core.scenario import PROFILES
from quantbench.methods import METHODS


def _offered(line: str) -> list[str]:
    """What bash is offered for the last word of a line, which may be empty."""
    words = line.split(" ")
    asked = {"_QUANTBENCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner().invoke(app, [], env=asked, prog_name="quantbench")
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("quantbench met", ["methods", "metrics"]),
        ("quantbench run --prof", ["--profile"]),
        ("quantbench run --profile ", list(PROFILES)),
        ("quantbench run --method ", [method.name for method in METHODS]),
        ("quantbench run --method torch", ["torch", "torch-dynamic", "torchao"]),
        ("quantbench run --method gguf,q", ["gguf,qat"]),
        ("quantbench run --model dummy:tiny", ["dummy:tinyllama-1.1b"]),
        ("quantbench run --prompts t", ["ten", "two"]),
        ("quantbench run --engine ", ["inline", "process", "ray", "slurm"]),
        ("quantbench run --fail-on w", ["worse"]),
        ("quantbench run --device ", []),
        ("quantbench plan llama-2", ["llama-2-13b", "llama-2-70b", "llama-2-7b"]),
        ("quantbench plan canary --precision nf4", ["nf4", "nf4-dq"]),
        ("quantbench plan canary --format ", ["table", "md", "csv", "json"]),
        ("quantbench quantize can", ["canary"]),
        ("quantbench export --to g", ["github-action-benchmark"]),
        ("quantbench metrics weight_k", ["weight_kinds"]),
        ("quantbench tables meas", ["measured"]),
        ("quantbench tables al", ["all"]),
        ("quantbench recommend --model dummy:tiny", ["dummy:tinyllama-1.1b"]),
    ],
)
def test_the_shell_is_offered_what_there_is(line: str, offered: list[str]) -> None:
    assert sorted(_offered(line)) == sorted(offered)


def test_zsh_is_offered_the_same_with_what_commands_do() -> None:
    asked = {"_QUANTBENCH_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "quantbench mod"}
    said = CliRunner().invoke(app, [], env=asked, prog_name="quantbench").stdout
    assert '"models":"List the built-in models' in said


@pytest.fixture
def program(tmp_path: Path) -> str:
    """A search path whose first folder has ``quantbench``, as it is installed."""
    path = tmp_path / "quantbench"
    path.write_text(f"#!{sys.executable}\nfrom quantbench.cli import main\nmain()\n")
    path.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_for_a_shell_is_valid_and_completes(shell: str, program: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    source = 'eval "$(_QUANTBENCH_COMPLETE=source_SHELL quantbench)"'.replace("SHELL", shell)
    asking = {
        "bash": 'COMP_WORDS=(quantbench rec); COMP_CWORD=1; _quantbench_completion quantbench; echo "${COMPREPLY[@]}"',
        # Without a terminal zsh has no completion to define functions for: they are called as they are.
        "zsh": 'words=(quantbench rec); CURRENT=2; _arguments() { echo "$@"; }; _quantbench_completion',
    }
    before = {"bash": "", "zsh": "compdef() { :; }; "}
    command = [shell, "-c", before[shell] + source + "\n" + asking[shell]]
    done = subprocess.run(command, env={**os.environ, "PATH": program}, capture_output=True, text=True, check=False)
    assert "recommend" in done.stdout, done.stderr
