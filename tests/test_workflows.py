"""The workflows and what they run: their form, their scripts, that every option in them exists, and how a night ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main
import yaml

from quantbench.cli.app import app
from quantbench.core.scenario import prompt_tokens
from quantbench.planning.matrix import scenarios
from quantbench.planning.matrix_file import read_matrix
from quantbench.results.schema import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS: dict[str, dict[Any, Any]] = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}
CI, NIGHTLY = "ci.yml", "nightly-gpu.yml"
ON = True
"""What YAML 1.1 makes of the key ``on``."""

STEPS = [(name, step) for name, body in WORKFLOWS.items() for job in body["jobs"].values() for step in job["steps"]]
SCRIPTS = {f"{name}, {step['name']}": step["run"] for name, step in STEPS if "run" in step}
COMPARE, ADD, MEASURE = (
    f"{NIGHTLY}, {step}" for step in ("Compare with the last nights", "Add this night to the last ones", "Measure")
)
BASH = ("bash", "--noprofile", "--norc", "-eo", "pipefail")
"""As GitHub runs a script whose shell is named bash."""

ENDS = {">", ">>", "<", "|", "||", "&&", ";"}
NOT_ENOUGH = "Not enough data to compare everything"


def _step(workflow: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(step for file, step in STEPS if file == workflow and step.get("name") == name)
    return found


def _tox(environment: str, key: str) -> str:
    parser = ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini", encoding="utf-8")
    return parser[f"testenv:{environment}"][key]


def _commands(text: str) -> Iterator[list[str]]:
    """Each line of a script as words, up to where its output goes."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        end = next((index for index, word in enumerate(words) if word in ENDS), len(words))
        yield from filter(None, (words[:end], words[end + 1 :]))


def _arguments(program: str) -> list[list[str]]:
    """What each call of a program in the workflows and in tox.ini is given; pytest also gets what follows ``tox -e gpu --``."""
    texts = [*SCRIPTS.values(), *(_tox(environment, "commands") for environment in ("bench", "gpu"))]
    found = []
    for words in (words for text in texts for words in _commands(text)):
        names = [Path(word).name for word in words]
        if program in names:
            found.append(words[names.index(program) + 1 :])
        elif program == "pytest" and "tox" in names and "--" in words:
            found.append(words[words.index("--") + 1 :])
    return found


def _options(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]


def _run(script: str, folder: Path, *programs: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A step's script, run in ``folder`` with ``programs`` (folders) first on the path."""
    path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "GITHUB_STEP_SUMMARY": str(folder / "summary.md"), **variables}
    return subprocess.run([*BASH, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def _program(path: Path, body: str) -> Path:
    """An executable script at ``path``; the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path.parent


def test_both_workflows_and_their_scripts_are_found() -> None:
    assert set(WORKFLOWS) == {CI, NIGHTLY}
    assert {COMPARE, ADD, MEASURE} <= set(SCRIPTS)
    assert any(name.startswith(CI) for name in SCRIPTS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_keeps_the_schema(path: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="tox -e lint checks it")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_lint_checks_every_workflow_by_the_schema() -> None:
    checked = next(words for words in _commands(_tox("lint", "commands")) if words[0] == "check-jsonschema")
    assert [word for word in checked if word.endswith(".yml")] == [str(path.relative_to(ROOT)) for path in FILES]


def test_every_python_that_is_claimed_is_tested() -> None:
    """The first by what does all else, the others in a job of their own, each by an environment of tox."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    claimed = [found[1] for each in classifiers if (found := re.fullmatch(r".* :: Python :: (3\.\d+)", each))]
    others: list[str] = WORKFLOWS[CI]["jobs"]["python"]["strategy"]["matrix"]["python"]
    assert others == claimed[1:]
    assert [_tox(f"tests-py{each.replace('.', '')}", "base_python") for each in others] == [f"python{each}" for each in others]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_shell_and_nothing_is_pasted_into_it(name: str) -> None:
    assert "${{" not in SCRIPTS[name]
    checkers = [["bash", "-n"], *([["shellcheck", "--shell=bash", "-"]] if shutil.which("shellcheck") else [])]
    for checker in checkers:
        done = subprocess.run(checker, input=SCRIPTS[name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_read_only_and_ends_in_time(name: str) -> None:
    body = WORKFLOWS[name]
    assert body["permissions"] == {"contents": "read"}
    assert body["defaults"]["run"]["shell"] == "bash"
    assert body["concurrency"]["group"]
    for job in body["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] > 0


def test_actions_are_github_s_own_and_pinned() -> None:
    used = [step["uses"] for _, step in STEPS if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"actions/[a-z/-]+@v\d+", action)


def test_code_from_elsewhere_never_runs_on_the_machine_with_the_gpu_and_two_nights_never_at_once() -> None:
    assert set(WORKFLOWS[NIGHTLY][ON]) == {"schedule", "workflow_dispatch"}
    assert WORKFLOWS[NIGHTLY]["concurrency"] == {"group": "nightly-gpu", "cancel-in-progress": False}
    assert set(WORKFLOWS[CI][ON]) == {"push", "pull_request"}


def test_every_option_of_quantbench_exists() -> None:
    commands: Any = typer.main.get_command(app)
    calls = _arguments("quantbench")
    assert {words[0] for words in calls} >= {"compare", "tables", "report", "doctor"}
    for command, *words in calls:
        known = {name for parameter in commands.commands[command].params for name in parameter.opts}
        assert set(_options(words)) <= known, command


def test_every_option_of_pytest_exists(pytestconfig: pytest.Config) -> None:
    asked = {option for words in _arguments("pytest") for option in _options(words)}
    assert {"--benchmark-json", "--quantbench-matrix", "--quantbench-repeats", "-m"} <= asked
    for option in asked:
        pytestconfig.getoption(option)  # ValueError for one that is unknown


def test_the_gpu_job_ends_with_one_sentence_where_there_is_no_gpu() -> None:
    words = next(words for words in _commands(_tox("gpu", "commands")) if "bench/" in words)
    command = [sys.executable, "-m", *words[: words.index("{posargs}")], "-p", "no:cacheprovider"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("ERROR: quantbench: device 'cuda' was requested, but ")


def test_tox_installs_nothing_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    command = shlex.split(_tox("gpu", "install_command").replace("\\\n", " "))
    asked = [*command[: command.index("{opts}")], "no-such-package"]
    pip = _program(tmp_path / "bin" / "python", 'echo "pip got $*"')
    for name, listed, code in (("none", "echo No devices were found", 2), ("two", "echo GPU 0: A; echo GPU 1: B", 0)):
        path = f"{_program(tmp_path / name / 'nvidia-smi', listed)}{os.pathsep}{pip}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(asked, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert ("pip got -I -m pip install no-such-package" in done.stdout) == (code == 0)
        assert done.stderr.count("nvidia-smi lists no GPU") == (code != 0)


@pytest.mark.parametrize(
    ("capabilities", "users", "compiled"),
    [
        ("9.0", "-DGGML_CUDA=on", "-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=90"),
        (r"9.0\n8.0\n9.0", "", " -DCMAKE_CUDA_ARCHITECTURES=80;90"),
        (r"12.0", "", " -DCMAKE_CUDA_ARCHITECTURES=120"),
        ("Field compute_cap is not a valid field to query.", "", " -DCMAKE_CUDA_ARCHITECTURES=native"),
        ("9.0", "-DCMAKE_CUDA_ARCHITECTURES=86", "-DCMAKE_CUDA_ARCHITECTURES=86"),
    ],
)
def test_llama_cpp_is_compiled_for_the_gpus_that_are_here(capabilities: str, users: str, compiled: str, tmp_path: Path) -> None:
    """Once for each generation; what the user set wins."""
    command = shlex.split(_tox("gpu", "install_command").replace("\\\n", " "))
    asked = [*command[: command.index("{opts}")], "a-package"]
    smi = _program(tmp_path / "smi" / "nvidia-smi", f'[ "$1" = -L ] && echo GPU 0: A || printf "{capabilities}\\n"')
    pip = _program(tmp_path / "bin" / "python", 'echo "compiled with $CMAKE_ARGS;"')
    environment = {**os.environ, "PATH": f"{smi}{os.pathsep}{pip}{os.pathsep}{os.environ['PATH']}", "CMAKE_ARGS": users}
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, f"compiled with {compiled};" in done.stdout) == (0, True), done.stdout + done.stderr


AUDITED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]["tested"]
PIP_AUDIT = """
import json, sys
from pathlib import Path
said = json.loads({said!r})
asked = Path(sys.argv[sys.argv.index("--requirement") + 1]).read_text().split()
if said is None:
    sys.exit("ERROR:pip_audit._cli:Connection refused")
found = [{{"name": each.split("==")[0], "version": each.split("==")[1], "vulns": []}} for each in asked]
Path(sys.argv[sys.argv.index("--output") + 1]).write_text(json.dumps({{"dependencies": [*found[len(said):], *said]}}))
"""
FLAW = {"id": "CVE-2026-1", "fix_versions": ["9"], "description": "Anything\ngoes"}


@pytest.mark.parametrize(
    ("said", "options", "code", "words"),
    [
        ([], (), 0, f"no known vulnerability in {len(AUDITED)} tested versions"),
        ([{"name": "torch", "version": "1", "vulns": [FLAW]}], (), 1, "torch 1: CVE-2026-1 (mended in 9): Anything goes"),
        (None, (), 0, f"{len(AUDITED)} of {len(AUDITED)} versions could not be looked up among known vulnerabilities: ERROR:"),
        (None, ("required",), 1, "Connection refused"),
        ([{"name": "torch", "skip_reason": "not found"}], ("required",), 1, f"1 of {len(AUDITED)} versions could not"),
    ],
    ids=["none", "one", "not reached", "not reached and required", "not known and required"],
)
def test_the_audit_says_what_it_found_or_that_it_could_not_look(
    said: object, options: tuple[str, ...], code: int, words: str, tmp_path: Path
) -> None:
    (tmp_path / "pip_audit.py").write_text(PIP_AUDIT.format(said=json.dumps(said)))
    command = [sys.executable, str(ROOT / ".ci" / "audit.py"), *options]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (done.returncode, words in done.stdout) == (code, True), done.stdout + done.stderr
    assert done.stdout.count("\n") == 1


def test_every_push_looks_for_insecure_code_and_demands_the_audit() -> None:
    bandit = next(words for words in _commands(_tox("lint", "commands")) if words[0] == "bandit")
    assert bandit in list(_commands(_tox("security", "commands")))
    (script,) = (text for name, text in SCRIPTS.items() if name.startswith(CI) and "-e security" in text)
    assert script.splitlines()[-1].endswith("-e security -- required")


@pytest.mark.parametrize("name", ["gpu.toml", "precision-gpu.toml"])
def test_prompts_of_the_gpu_matrices_fill_their_context_with_the_answer(name: str) -> None:
    planned = scenarios(read_matrix(ROOT / "bench" / name))
    assert {each.conditions.device for each in planned} == {"cuda"}
    long = [each for each in planned if prompt_tokens(each.prompts)]
    found = {(prompt_tokens(each.prompts) + each.conditions.output_tokens, each.batch) for each in long}
    contexts, batches = ((512, 4096), (1, 8, 32)) if name.startswith("precision") else ((512,), (8,))
    assert found == {(context, batch) for context in contexts for batch in batches}


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 0), (130, 130)])
def test_a_night_fails_by_the_comparison_s_exit_code_but_not_for_lack_of_data(tmp_path: Path, code: int, ends: int) -> None:
    stub = _program(tmp_path / "bin" / "quantbench", f'echo "$*"; exit {code}')
    done = _run(SCRIPTS[COMPARE], tmp_path, stub, WINDOW="7; touch pwned")
    assert done.returncode == ends
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("compare nights results --window 7; touch pwned --format md\n")
    assert (NOT_ENOUGH in summary) == (code == 4)
    assert not (tmp_path / "pwned").exists()


def test_further_arguments_reach_pytest_as_they_were_quoted(tmp_path: Path) -> None:
    _program(tmp_path / "tox" / "bin" / "tox", 'printf "%s\\n" "$@"')
    variables = {"RUNNER_TEMP": str(tmp_path), "MATRIX": "a b.toml", "REPEATS": "10"}
    plain = _run(SCRIPTS[MEASURE], tmp_path, PYTEST_ARGUMENTS="", **variables).stdout.splitlines()
    assert plain[:5] == ["-e", "gpu", "--", "--quantbench-matrix=a b.toml", "--quantbench-repeats=10"]
    asked = """-k "gguf and decode" '$(touch pwned)' ; *"""
    more = _run(SCRIPTS[MEASURE], tmp_path, PYTEST_ARGUMENTS=asked, **variables).stdout.splitlines()
    assert more == [*plain, "-k", "gguf and decode", "$(touch pwned)", ";", "*"]
    assert not (tmp_path / "pwned").exists()


def test_the_last_nights_are_found_again_and_only_a_compared_night_joins_them() -> None:
    restore, save = (_step(NIGHTLY, f"{what} the last nights") for what in ("Restore", "Save"))
    assert restore["with"]["key"] == save["with"]["key"]
    assert restore["with"]["path"] == save["with"]["path"]
    assert save["with"]["key"].startswith(restore["with"]["restore-keys"])
    assert "steps.compare.outcome == 'success'" in _step(NIGHTLY, "Add this night to the last ones")["if"]
    assert "steps.add.outcome == 'success'" in save["if"]


@pytest.fixture
def night(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Compare a night's rows with the earlier ones by the real command; its exit code, summary, and messages."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def measure(day: int, itl_s: float) -> tuple[int, str, str]:
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        (tmp_path / "summary.md").unlink(missing_ok=True)
        for table in ("scenarios", "runs"):
            (tmp_path / "results" / table / "date=2026-01-01").mkdir(parents=True)
        rows = [
            {
                "run_id": f"night-{day}", "started_at": datetime(2026, 1, day, tzinfo=UTC), "repeat": process,
                "scenario_id": "canary/gguf-q8_0/ten", "scenario_key": "k", "status": "ok", "schema_version": 2, "machine": "m",
                "kernel": "cuda", "itl_s": itl_s * (1 + 0.002 * (process % 3)), "weight_bytes": 4000, "versions": "{}",
            }
            for process in range(10)
        ]  # fmt: skip
        for table, name in (("scenarios", f"night-{day}"), ("scenarios", f"old-{day}"), ("runs", f"night-{day}")):
            kept = rows if name.startswith("night") else []
            path = tmp_path / "results" / table / "date=2026-01-01" / f"{name}.parquet"
            pq.write_table(pa.Table.from_pylist(kept if table == "scenarios" else [], schema=schema(table)), path)
            if name.startswith("old"):
                os.utime(path, (0, 0))
        done = _run(SCRIPTS[COMPARE], tmp_path, Path(sys.executable).parent, WINDOW="7")
        return done.returncode, (tmp_path / "summary.md").read_text(), done.stderr

    return measure


def test_three_nights(tmp_path: Path, night: Callable[..., tuple[int, str, str]]) -> None:
    code, summary, said = night(1, 0.004)
    assert code == 0
    assert NOT_ENOUGH in summary
    assert "quantbench: " in said
    assert _run(SCRIPTS[ADD], tmp_path).returncode == 0
    assert [path.name for path in (tmp_path / "nights").rglob("*.parquet")] == ["night-1.parquet"] * 2
    code, summary, _ = night(2, 0.004)
    assert code == 0
    assert summary.startswith("No regression")
    assert NOT_ENOUGH not in summary
    code, summary, _ = night(3, 0.008)
    assert code == 3
    assert summary.startswith("Regression: canary/gguf-q8_0/ten decode -50")
