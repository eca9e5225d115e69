"""A plain installation: every command answers, or names in one sentence the extra that it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROWS = str(ROOT / "tests" / "data" / "schema" / "version-2")
EXTRAS = (
    "torch", "transformers", "accelerate", "safetensors", "sentencepiece", "tokenizers", "huggingface_hub", "bitsandbytes",
    "llama_cpp", "gguf", "google.protobuf", "gptqmodel", "optimum", "torchao", "compressed_tensors", "peft", "httpx",
    "vl_convert", "jinja2", "ray", "submitit",
)  # fmt: skip
"""Modules that come with extras only."""

ANSWERED = {
    "plan": ("plan", "llama-2-7b"),
    "tables": ("tables", "all"),
    "tables of a run": ("tables", "--results", ROWS),
    "export": ("export", "--to", "csv", "--results", ROWS),
    "methods": ("methods",),
    "metrics": ("metrics",),
    "models": ("models",),
    "doctor": ("doctor",),
}
UNDECIDED = {
    "recommend, planned": ("recommend", "--memory", "8GiB", "--model", "llama-2-7b"),
    "recommend": ("recommend", "--memory", "8GiB", "--results", ROWS),
    "compare": ("compare", ROWS, ROWS),
}
"""What these say ends with the code for too little data: the sizes come from llama.cpp, the rows are of one run only."""

REFUSED = {
    "report": (("report", "--results", ROWS), "report"),
    "picture": (("report", "-o", "report.png", "--results", ROWS), "report"),
    "quantize": (("quantize", "canary", "--method", "gguf", "--precision", "q8_0", "-o", "out"), "gguf"),
    "plan of a hub model": (("plan", "org/model"), "torch"),
    "plan of a GGUF file": (("plan", "model.gguf"), "gguf"),
}
COMMANDS = (
    "run", "plan", "quantize", "doctor", "tables", "recommend", "compare", "contrast", "report", "export", "methods", "metrics",
    "models",
)  # fmt: skip
CODE = """
import json, sys
from typer.testing import CliRunner
from quantbench.cli.app import app
said = {}
for name, words in json.load(sys.stdin).items():
    result = CliRunner().invoke(app, words)
    said[name] = [result.exit_code, result.stdout, result.stderr]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Exit code, stdout and stderr of every command, in a process in which no module of an extra can be imported."""
    folder = tmp_path_factory.mktemp("plain")
    hidden = f"import sys\nfor name in {EXTRAS!r}:\n    sys.modules[name] = None\n"
    (folder / "sitecustomize.py").write_text(hidden)  # so for processes that this one starts
    (folder / "model.gguf").write_bytes(b"GGUF")
    lines: dict[str, Any] = {**ANSWERED, **UNDECIDED, **{name: words for name, (words, _) in REFUSED.items()}}
    lines |= {f"{command} --help": (command, "--help") for command in COMMANDS}
    path = os.pathsep.join(filter(None, [str(folder), str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "QUANTBENCH_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], input=json.dumps(lines), env=environment, cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [*ANSWERED, *(f"{command} --help" for command in COMMANDS)])
def test_a_command_answers(name: str, said: Any) -> None:
    code, out, err = said[name]
    assert code == 0, err
    assert out
    assert all(line.startswith("quantbench: ") for line in err.splitlines())


@pytest.mark.parametrize("name", REFUSED)
def test_a_command_that_takes_an_extra_names_it_in_one_sentence(name: str, said: Any) -> None:
    code, out, err = said[name]
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("quantbench: ")
    assert f"[{REFUSED[name][1]}]'" in err


@pytest.mark.parametrize("name", UNDECIDED)
def test_a_command_with_too_little_data_says_so(name: str, said: Any) -> None:
    code, out, err = said[name]
    assert code == 4, err
    assert len((out + err).splitlines()) <= 2


def test_methods_and_doctor_say_how_to_get_each_extra(said: Any) -> None:
    for name in ("methods", "doctor"):
        text = " ".join(said[name][1].split())
        for extra in ("torch", "gguf", "gptq", "awq", "torchao", "compressed-tensors", "bitsandbytes", "server"):
            assert f".[{extra}]' in a checkout of quantbench" in text


def test_a_plan_has_the_sizes_that_need_no_library_and_says_what_the_others_need(said: Any) -> None:
    text = said["plan"][1]
    assert "13.5 GB" in text  # 6,738,415,616 parameters of two bytes
    assert "the sizes come from llama.cpp, which needs llama_cpp, gguf, not installed" in " ".join(text.split())
