"""The composite action for users' own workflows: its form, and what its scripts give to pip and pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github" / "actions" / "quantbench" / "action.yml"
WORKFLOW = ROOT / "docs" / "template" / ".github" / "workflows" / "quantized.yml"
BODY: dict[str, Any] = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
STEPS: dict[str, dict[str, Any]] = {step["name"]: step for step in BODY["runs"]["steps"]}
BASH = ("bash", "--noprofile", "--norc", "-eo", "pipefail")
SAYS = '#!/bin/sh\nfor word in "$@"; do echo "$(basename "$0")|$word"; done\n'
HOSTILE = """-k "gguf and decode" '$(touch pwned)' ; *"""
KEPT = ["-k", "gguf and decode", "$(touch pwned)", ";", "*"]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[str]]:
    """Run a step's script with programs that say what they are given; the words of each."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "quantbench"):
        (tmp_path / "bin" / name).write_text(SAYS)
        (tmp_path / "bin" / name).chmod(0o755)

    def script(step: str, **variables: str) -> list[str]:
        files = {name: str(tmp_path / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
        environment = {**os.environ, **files, "PATH": path, "GITHUB_ACTION_PATH": str(ACTION.parent), **variables}
        command = [*BASH, "-c", STEPS[step]["run"]]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return [line.partition("|")[2] for line in done.stdout.splitlines()]

    return script


@pytest.mark.parametrize(("schema", "path"), [("vendor.github-actions", ACTION), ("vendor.github-workflows", WORKFLOW)])
def test_lint_checks_it_by_the_schema_and_it_holds(schema: str, path: Path) -> None:
    words = f"check-jsonschema --builtin-schema {schema} {path.relative_to(ROOT)}"
    assert words in (ROOT / "tox.ini").read_text(encoding="utf-8")
    pytest.importorskip("check_jsonschema", reason="tox -e lint checks it")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_nothing_is_pasted_into_a_script_and_actions_are_github_s_own() -> None:
    for step in STEPS.values():
        assert "${{" not in step.get("run", "")
        assert ("run" in step) == (step.get("shell") == "bash")
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/none@v1"))


def test_it_installs_the_quantbench_that_it_came_with(run: Callable[..., list[str]], tmp_path: Path) -> None:
    words = run("Install", EXTRAS="gguf,tested", REQUIREMENTS="-e . 'a b' $(touch pwned)")
    assert words == [
        "-m", "pip", "install", f"quantbench[gguf,tested] @ file://{ROOT}", "-e", ".", "a b", "$(touch", "pwned)",
    ]  # fmt: skip
    assert run("Install", EXTRAS="gguf", REQUIREMENTS="") == ["-m", "pip", "install", f"quantbench[gguf] @ file://{ROOT}"]
    assert not (tmp_path / "pwned").exists()


def test_it_runs_pytest_and_says_where_the_results_are(run: Callable[..., list[str]], tmp_path: Path) -> None:
    assert run("Test", ARGUMENTS=HOSTILE) == ["-m", "pytest", f"--quantbench-results={tmp_path / 'results'}", *KEPT]
    assert (tmp_path / "GITHUB_OUTPUT").read_text() == f"results={tmp_path / 'results'}\n"
    assert not (tmp_path / "pwned").exists()


def test_the_page_of_the_job_gets_the_table_of_what_was_measured(run: Callable[..., list[str]], tmp_path: Path) -> None:
    results = tmp_path / "results"
    run("Tables on the job's page", RESULTS=str(results))
    assert not (tmp_path / "GITHUB_STEP_SUMMARY").exists(), "where nothing was measured"
    (results / "scenarios").mkdir(parents=True)
    run("Tables on the job's page", RESULTS=str(results))
    said = [line.partition("|")[2] for line in (tmp_path / "GITHUB_STEP_SUMMARY").read_text().splitlines()]
    assert said == ["tables", "measured", "--results", str(results), "--format", "md"]


def test_the_template_uses_it_with_inputs_that_it_has() -> None:
    (job,) = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"].values()
    step = job["steps"][-1]
    assert step["uses"] == f"OWNER/REPO/{ACTION.parent.relative_to(ROOT)}@main"
    assert set(step["with"]) <= set(BODY["inputs"])
