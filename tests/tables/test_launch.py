"""The commands that run a pick: one test of each, and each is what it says in its own language."""

from __future__ import annotations

import ast
import shlex

import pytest
from typer.testing import CliRunner

from quantbench.advice.launch import of_file, of_variant
from quantbench.cli.app import app
from quantbench.core.scenario import Variant
from quantbench.methods import METHODS
from quantbench.models import MODELS


def variant(name: str) -> Variant:
    method, _, precision = name.partition("/")
    return Variant(method=method, precision=precision)


def test_a_file_is_served_by_llama_server_and_by_ollama() -> None:
    assert of_file("/models/Qwen Q4.gguf", "cpu") == [
        "llama-server -m '/models/Qwen Q4.gguf'",
        "echo 'FROM /models/Qwen Q4.gguf' > Modelfile",
        "ollama create 'qwen q4' -f Modelfile && ollama run 'qwen q4'",
    ]
    assert of_file("q4.gguf", "cuda", 20)[0] == "llama-server -m q4.gguf -ngl 20"
    assert of_file("q4.gguf", "cuda:0")[:2] == ["llama-server -m q4.gguf -ngl 99", "echo 'FROM ./q4.gguf' > Modelfile"]


def test_ollama_reads_no_split_file() -> None:
    assert of_file("big-00001-of-00002.gguf", "cpu") == ["llama-server -m big-00001-of-00002.gguf"]


def test_a_gguf_of_a_model_is_made_first() -> None:
    made, served, *_ = of_variant("org/model@main", variant("gguf/q4_k_m"), "cpu")
    assert made == "quantbench quantize org/model@main --method gguf --precision q4_k_m -o model-gguf-q4_k_m"
    assert served == "llama-server -m model-gguf-q4_k_m/model-q4_k_m.gguf"


@pytest.mark.parametrize("name", ["gptq/int4-g128", "awq/int4-g128"])
def test_vllm_serves_on_a_gpu_what_it_reads(name: str) -> None:
    _, served = of_variant("./model", variant(name), "cuda")
    assert served == f"vllm serve model-{name.replace('/', '-')}"
    assert of_variant("org/model@v2", variant("torch/bf16"), "cuda") == ["vllm serve org/model --revision v2 --dtype bfloat16"]


@pytest.mark.parametrize(
    "name", ["torch/bf16", "torch-dynamic/int8", "bitsandbytes/nf4", "torchao/int8-wo", "prune/unstructured-50"]
)
def test_transformers_takes_three_lines_of_python(name: str) -> None:
    lines = of_variant("canary", variant(name), "cpu")
    python = lines[-3:]
    ast.parse("\n".join(python))
    assert python[-1].startswith("print(answer(")
    made = lines[:-3]
    place = "canary-" + name.replace("/", "-") if made else str(MODELS["canary"].folder())
    assert repr(place) in python[1]


@pytest.mark.parametrize("method", [each.name for each in METHODS if each.saver])
def test_the_command_that_makes_files_is_one_of_quantbench(method: str) -> None:
    first = METHODS[method].precisions[0].name
    lines = of_variant("not a model", Variant(method=method, precision=first), "cpu")
    if method == "torch":
        return
    program, *arguments = shlex.split(lines[0])
    assert program == "quantbench"
    result = CliRunner().invoke(app, arguments)
    assert "unknown model 'not a model'" in result.output  # and not an unknown option, method or precision


def test_nothing_is_said_where_nothing_is_known_that_runs_it() -> None:
    assert of_variant("org/model", variant("server/as-served"), "cpu") == []
