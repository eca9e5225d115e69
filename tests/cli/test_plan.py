"""``quantbench plan`` and ``recommend --model``: sizes before anything is measured."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from quantbench.cli.app import app
from quantbench.core.units import GIB
from quantbench.models import meta
from quantbench.models.architecture import AS_LLAMA

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

KEYS = {
    "model", "method", "precision", "parameters", "weight_bytes", "kv_cache_bytes", "activation_bytes", "peak_bytes",
    "bits_per_weight", "fits", "note",
}  # fmt: skip


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def _rows(*arguments: str) -> dict[str, dict[str, Any]]:
    result = _run("plan", *arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    return {f"{row['method']}/{row['precision']}": row for row in json.loads(result.stdout)}


def test_json_is_a_list_of_rows_with_the_agreed_keys() -> None:
    rows = _rows("llama-2-7b", "--method", "torch", "--fit", "24GiB", "--context", "2048", "--batch", "2")
    assert list(rows) == ["torch/fp32", "torch/fp16", "torch/bf16"]
    half = rows["torch/fp16"]
    assert set(half) >= KEYS
    assert half["parameters"] == 6_738_415_616
    assert half["kv_cache_bytes"] == 2 * 2 * 32 * 32 * 128 * 2048 * 2
    assert (half["context"], half["batch"], half["kv_dtype"]) == (2048, 2, "fp16")
    assert (half["fits"], half["fits_on"]) == (True, {"24 GiB": True})
    assert rows["torch/fp32"]["fits"] is False


def test_every_format_prints_the_same_rows() -> None:
    arguments = ("plan", "canary", "--method", "torch", "--fit", "1GiB")
    text, md = _run(*arguments).stdout, _run(*arguments, "--format", "md").stdout
    records = list(csv.DictReader(io.StringIO(_run(*arguments, "--format", "csv").stdout)))
    assert [each["variant"] for each in records] == ["torch/fp32", "torch/fp16", "torch/bf16"]
    assert [int(each["weight_bytes"]) for each in records] == [23_082_112, 11_541_120, 11_541_120]
    workloads = [(each["context"], each["batch"], each["kv_dtype"]) for each in records]
    assert workloads == [("1024", "1", "fp32"), ("1024", "1", "fp16"), ("1024", "1", "bf16")]
    for out in (text, md):
        assert out.startswith("Not measured: ")
        assert "23.1 MB" in out
        assert "Fits 1 GiB" in out
    assert "| torch/fp32 | 23.1 MB |" in md


@pytest.fixture
def novel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration of a type that nobody knows, where transformers is not installed."""
    path = tmp_path / "novel.json"
    path.write_text(json.dumps({
        "model_type": "novel", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
    }))  # fmt: skip
    monkeypatch.setattr(meta, "versions", lambda _: {})
    return str(path)


@pytest.mark.parametrize("output", ["table", "md", "csv", "json"])
def test_what_is_counted_as_a_llama_is_never_shown_without_its_bounds(novel: str, output: str) -> None:
    shown = _run("plan", novel, "--method", "torch", "--fit", "100GB", "--format", output).stdout
    less, more = f"{1 - AS_LLAMA[0]:.0%} less", f"{AS_LLAMA[1] - 1:.0%} more"
    assert f"{less} to {more}" in " ".join(shown.split())
    if output in ("table", "md"):
        assert "~2.2 GB" in shown
        assert "weights are exact" not in shown


def test_what_fits_within_the_bounds_only_is_not_said_to_fit(novel: str) -> None:
    (row,) = _rows(novel, "--method", "torch", "--precision", "bf16", "--fit", "100GB").values()
    assert row["least_weight_bytes"] < row["weight_bytes"] < row["most_weight_bytes"]
    assert row["fits"] is True
    (row,) = _rows(novel, "--method", "torch", "--precision", "bf16", "--fit", str(row["peak_bytes"] + 1000)).values()
    assert (row["fits"], list(row["fits_on"].values())) == (None, [None])
    assert "nobody published" not in _run("plan", novel, "--method", "torch", "--fit", "1GB").stdout


def test_methods_and_precisions_are_lists_as_for_run() -> None:
    rows = _rows("canary", "--method", "torch,bitsandbytes", "--method", "torch-dynamic", "--precision", "fp16,int8")
    assert list(rows) == ["torch/fp16", "bitsandbytes/int8", "torch-dynamic/int8"]


def test_without_fit_the_memory_here_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from quantbench.cli import plan as command

    monkeypatch.setattr(command, "memory_limit", lambda: GIB)
    monkeypatch.setattr(command, "gpu_memory", lambda: (("an A10", 24 * GIB), ("an A10", 24 * GIB)))
    rows = _rows("llama-2-7b", "--method", "torch")
    assert rows["torch/fp16"]["fits_on"] == {"this machine": False, "an A10": True}
    assert rows["torch/fp16"]["fits"] is True


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["llama-9-7b"], "unknown model 'llama-9-7b'; did you mean"),
        (["./nowhere"], "path './nowhere' does not exist"),
        (["llama-2-7b", "--context", "0"], "context is 0"),
        (["llama-2-7b", "--context", "-4"], "context is -4"),
        (["llama-2-7b", "--batch", "0"], "batch is 0"),
        (["llama-2-7b", "--fit", "lots"], "'lots' is not a memory size; write for example 24GiB"),
        (["llama-2-7b", "--fit", "0GiB"], "'0GiB' is not a memory size"),
        (["llama-2-7b", "--fit", "-1GiB"], "'-1GiB' is not a memory size"),
        (["llama-2-7b", "--fit", ""], "'' is not a memory size"),
        (["llama-2-7b", "--kv-dtype", "fp7"], "unknown KV dtype 'fp7'"),
        (["llama-2-7b", "--method", "magic"], "unknown method 'magic'"),
        (["llama-2-7b", "--precision", "q9"], "unknown precision 'q9'"),
        ([""], "the model's name is empty; give a built-in name"),
        (["dummy:"], "the model's name is empty; give a built-in name"),
        (["nothing.json"], "path 'nothing.json' does not exist; give a config.json"),
        (["lstm"], "model 'lstm' is a module without tokens and has no config.json"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments: list[str], says: str) -> None:
    result = _run("plan", *arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['quantbench', 'plan', 'llama-2-70b', '--fit', '24GiB']\n"
        "from quantbench.cli.app import app\n"
        "try: app()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'pyarrow', 'llama_cpp', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.usefixtures("artifacts")
def test_a_gguf_file_is_planned_for_what_opens_it(tmp_path: Path) -> None:
    from quantbench.models.checkpoint import resolve
    from quantbench.runtimes.llama_cpp.files import f16_file, quantized_file, tensor_bytes

    path = quantized_file(resolve("canary"), "q8_0").path
    rows = _rows(str(path), "--method", "gguf,torch", "--precision", "q8_0,q4_0,fp32", "--fit", "1GiB")
    assert [key for key, row in rows.items() if row["weight_bytes"]] == ["gguf/q8_0"]
    assert rows["gguf/q8_0"]["weight_bytes"] == tensor_bytes(path)
    assert "is already quantized to q8_0; use gguf/q8_0" in rows["gguf/q4_0"]["note"]
    assert "cannot open a .gguf file" in rows["torch/fp32"]["note"]
    assert set(_rows(str(path))) == {"gguf/q8_0"}
    assert "holds gguf/q8_0" in " ".join(_run("plan", str(path)).stderr.split())
    assert {"gguf/f16", "gguf/q4_k_m"} < set(_rows(str(f16_file(resolve("canary")))))
    cut = tmp_path / "cut ünd.gguf"
    cut.write_bytes(path.read_bytes()[:100_000])
    for arguments in (("plan", str(cut)), ("recommend", "--memory", "1GiB", "--model", str(cut))):
        result = _run(*arguments)
        assert result.exit_code == 2
        assert "cut ünd.gguf is cut short or damaged" in " ".join(result.stderr.split())


def test_what_is_to_be_known_of_the_model_stands_in_every_format(tmp_path: Path) -> None:
    from quantbench.models import dummy_configs

    config = json.loads(dummy_configs()["llama-2-7b"].read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    says = "the checkpoint is already quantized (gptq): sizes in other methods are those of the unquantized model"
    plan = ("plan", str(path), "--method", "torch")
    outs = [_run(*plan, "--format", each).stdout for each in ("table", "md", "csv", "json")]
    outs.append(_run("recommend", "--model", str(path), "--memory", "24GiB", "--results", str(tmp_path / "none")).stdout)
    for out in outs:
        assert says in " ".join(out.split())


def test_results_that_cannot_be_read_are_named_before_a_plan(tmp_path: Path) -> None:
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "broken.parquet").write_text("junk")
    result = _run("recommend", "--model", "canary", "--memory", "1GiB", "--results", str(tmp_path))
    assert result.exit_code == 0
    assert "broken.parquet cannot be read and is left out" in " ".join(result.stderr.split())
    assert result.stdout.startswith("Not measured: ")


def test_recommend_answers_before_anything_is_measured(tmp_path: Path) -> None:
    arguments = ("recommend", "--model", "llama-2-13b", "--memory", "12GiB", "--results", str(tmp_path / "none"))
    result = _run(*arguments, "--context", "2048")
    assert result.exit_code == 0, result.output
    sentence = " ".join(result.stdout.split())
    assert sentence.startswith("Not measured: under 12 GiB try gguf/")
    assert "of llama-2-13b at 2048 tokens first" in sentence
    assert "published KLD" in sentence
    assert "llama.cpp's scoreboard, wikitext-2, 2024-05" in sentence  # the source is named
    (body,) = json.loads(_run(*arguments, "--format", "json").stdout)
    assert body["measured"] is False
    assert body["pick"]["peak_bytes"] <= 12 * GIB
    assert body["sentence"].startswith("Not measured")


def test_recommend_says_what_comes_nearest_where_nothing_fits(tmp_path: Path) -> None:
    result = _run("recommend", "--model", "llama-2-70b", "--memory", "8GiB", "--results", str(tmp_path / "none"))
    assert result.exit_code == 4
    sentence = " ".join(result.stdout.split())
    assert "no variant of llama-2-70b with a published KLD up to 0.056 fits at 4096 tokens" in sentence
    assert "nearest is gguf/" in sentence


def test_recommend_plans_no_speed(tmp_path: Path) -> None:
    result = _run("recommend", "--model", "canary", "--memory", "8GiB", "--min-tps", "3", "--results", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "was not measured, and speed cannot be planned" in " ".join(result.stderr.split())


def test_without_results_the_hint_is_to_name_a_model(tmp_path: Path) -> None:
    result = _run("recommend", "--memory", "8GiB", "--results", str(tmp_path / "none"))
    assert result.exit_code == 4
    assert "or name a --model, to plan it before anything is measured" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (
            "llama-2-7b",
            ["28GB, 26.95 GB does not hold", "7GB, 7.01 GB holds when rounded", "2.7GB, 2.53 GB recipe has changed since"],
        ),
        ("llama-2-13b", ["52GB, 52.06 GB holds when rounded", "13GB, 13.35 GB holds when rounded"]),
        ("llama-2-70b", ["70GB, 69.53 GB holds when rounded", "35GB, 36.36 GB does not hold"]),
    ],
)
def test_claimed_sizes_stand_beside_the_plan(model: str, sizes: list[str]) -> None:
    out = " ".join(_run("plan", model, "--method", "torch").stdout.split())
    for each in sizes:
        assert each in out


def test_a_model_that_nothing_was_claimed_of_has_no_such_note() -> None:
    assert "claimed" not in _run("plan", "mistral-7b", "--method", "torch").stdout


def test_what_nobody_published_a_kld_of_is_named_where_it_fits() -> None:
    out = " ".join(_run("plan", "llama-2-7b", "--method", "torch", "--fit", "24GiB").stdout.split())
    assert out.startswith(
        "Not measured: under 24 GiB nobody published a KLD of what fits: torch/fp16, torch/bf16 of llama-2-7b at 4096"
    )
