"""The current folder comes from elsewhere too: nothing in it shadows a library, is run by git, or is followed in circles."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pandas as pd
import pytest

import quantbench as public
from quantbench.core import machine

from .conftest import Command, Trap

STORED = Path(__file__).parents[1] / "data" / "schema" / "version-2"
STUBS = ("run", "--matrix=stub.toml", "--profile=quick")
MATRIX = """\
control = false
prompts = ["two"]
[methods]
stub = ["exact"]
[conditions]
reference = "stub/exact"
output_tokens = 4
answer_tokens = 4
continuation_tokens = 8
"""
SHADOWS = (
    "torch", "transformers", "numpy", "scipy", "pandas", "pyarrow", "jinja2", "rich", "typer", "psutil", "cattrs",
    "safetensors", "tokenizers", "huggingface_hub", "llama_cpp", "gguf", "pynvml", "sacrebleu", "httpx", "conftest",
    "sitecustomize", "usercustomize", "json", "random", "stub_method", "pytest_benchmark",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _matrix(here: Path) -> None:
    (here / "stub.toml").write_text(MATRIX)


def shadow(folder: Path, trap: Trap) -> None:
    """Modules of everybody's names, as files and as packages, and whatever pytest might take."""
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(trap.source)
    for name in ("transformers", "quantbench"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(trap.source)
    (folder / "test_theirs.py").write_text(trap.source)
    (folder / "pytest.ini").write_text(
        "[pytest]\npythonpath = .\naddopts = -p conftest --rootdir=.\nlog_file = precious\nrequired_plugins =\n"
    )


def test_no_module_of_the_current_folder_is_imported(quantbench: Command, here: Path, trap: Trap) -> None:
    """Neither by the command, nor by the fork server or its workers, which have torch and transformers imported."""
    shadow(here, trap)
    (here / "precious").write_text("kept")

    run = quantbench(*STUBS)
    tables = quantbench("tables", "all")

    assert run.returncode == 0, run.stdout + run.stderr
    assert set(pd.read_parquet(here / "results" / "scenarios").status) == {"ok"}
    assert tables.returncode == 0, tables.stderr
    assert not trap.shut
    assert (here / "precious").read_text() == "kept", "pytest empties the file that its key log_file names"


def test_trust_is_given_on_the_command_line_only(quantbench: Command, here: Path, pytestconfig: pytest.Config) -> None:
    """Pytest's settings know no such key, and a matrix neither."""
    assert pytestconfig.getini("quantbench_method") == ""
    with pytest.raises(ValueError, match="quantbench_trust_remote_code"):
        pytestconfig.getini("quantbench_trust_remote_code")
    (here / "stub.toml").write_text("trust_remote_code = true\n")
    done = quantbench(*STUBS)
    assert (done.returncode, "unknown key 'trust_remote_code'" in done.stderr) == (2, True)


# --- git


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(here: Path) -> Path:
    """One with a commit of one file, which was touched since: git compares it again."""
    git(here, "init", "-q")
    (here / "file").write_text("one")
    git(here, "add", "file")
    git(here, "commit", "-q", "-m", "first")
    os.utime(here / "file", (1, 1))
    return here


def program(path: Path, trap: Trap) -> Path:
    path.write_text(f"#!/bin/sh\ntouch {trap.marker}\ncat\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("named", ["core.fsmonitor", "hook"])
def test_git_runs_no_program_that_a_repository_names(named: str, repository: Path, tmp_path: Path, trap: Trap) -> None:
    if named == "hook":
        program(repository / ".git" / "hooks" / "post-index-change", trap)
    else:
        git(repository, "config", named, str(program(tmp_path / "theirs", trap)))

    assert machine.git_commit(repository) == git(repository, "rev-parse", "--short=12", "HEAD")

    assert not trap.shut


def test_files_that_only_such_a_program_can_compare_are_not_compared(repository: Path, tmp_path: Path, trap: Trap) -> None:
    """A filter's name may be anything, so that none can be switched off; also where a file that is included names it."""
    (repository / ".gitattributes").write_text("* filter=theirs\n")
    included = repository / ".git" / "more"
    git(repository, "config", "--file", str(included), "filter.theirs.clean", str(program(tmp_path / "theirs", trap)))
    git(repository, "config", "include.path", "more")

    assert machine.git_commit(repository) == git(repository, "rev-parse", "--short=12", "HEAD") + "-unchecked"

    assert not trap.shut
    git(repository, "status")
    assert trap.shut, "git itself runs it"


# --- results


def test_links_in_results_lead_round_in_no_circles_and_to_no_other_content(quantbench: Command, here: Path) -> None:
    results = shutil.copytree(STORED, here / "results")
    expected = public.load(str(results))
    for table in (results / "scenarios", results / "runs"):
        for name in "abc":  # so many ways that nobody gets to the end of them
            (table / name).symlink_to(".")
        (table / "itself").symlink_to("itself")
    os.mkfifo(results / "scenarios" / "fifo.parquet")
    (results / "scenarios" / "endless.parquet").symlink_to("/dev/zero")
    (results / "scenarios" / "passwd.parquet").symlink_to("/etc/passwd")

    with pytest.warns(UserWarning, match=r"passwd\.parquet cannot be read and is left out") as caught:
        rows = public.load(str(results))

    assert sorted(rows.scenario_id) == sorted(expected.scenario_id)
    assert not any("root:" in str(each.message) for each in caught)
    done = quantbench("tables", "all", "--run", rows.run_id[0])
    assert (done.returncode, "root:" in done.stdout + done.stderr) == (0, False), done.stderr
