"""The kit for a GPU machine without network, rehearsed on the CPU: it still runs after the code has moved."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from shutil import which

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 2048, "torch_dtype": "bfloat16",
    "max_position_embeddings": 1024,
}  # fmt: skip
MATRIX = """
models = ["dummy:any"]
prompts = ["tokens:16", "tokens:16@2"]
control = false

[methods]
torch = ["bf16"]

[conditions]
reference = "torch/bf16"
output_tokens = 4
answer_tokens = 4
"""


def _bash(checkout: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["bash", *arguments], cwd=checkout, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(which("bash") is None or which("timeout") is None, reason="needs bash and timeout")
def test_the_kit_is_prepared_and_rehearsed_on_the_cpu(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("bench", "quantbench", "conftest.py", "pyproject.toml"):
        (checkout / name).symlink_to(ROOT / name)
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    _bash(checkout, "bench/gpu/prepare.sh", ".", GPUKIT_SCRIPTS_ONLY="1")
    kit = checkout / ".gpukit"
    (kit / "matrix" / "table.toml").write_text(MATRIX)
    (kit / "matrix" / "eager.toml").write_text(MATRIX.replace(', "tokens:16@2"', "") + 'decode_path = "eager"\n')
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    said = _bash(
        checkout, ".gpukit/remote.sh", "table:90", "beside:90",
        GPUKIT_PYTHON=sys.executable, GPUKIT_DEVICE="cpu", GPUKIT_MODEL=f"dummy:{tmp_path / 'config.json'}",
        GPUKIT_WORK=str(tmp_path / "work"), OUT=str(tmp_path / "out"), GPUKIT_VARIANTS="torch/bf16",
        GPUKIT_COMPILED="", GPUKIT_BATCHES="1,2", GPUKIT_PROFILE="brief",
    )  # fmt: skip
    rows = pd.read_parquet(tmp_path / "work" / "results" / "table" / "scenarios")
    assert set(rows["status"]) == {"ok"}, said
    assert len(rows) == 2
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as archive:
        kept = archive.getnames()
    assert {name.split("/")[1] for name in kept if name.endswith(".parquet")} == {"eager", "table"}
    assert len(list((tmp_path / "out").iterdir())) <= 8  # no more come back
    lines = [json.loads(line) for line in (tmp_path / "out" / "beside.jsonl").read_text().splitlines()]
    ways = {line.get("way") for line in lines if "failed" not in line}
    assert {"eager", "static", "generate"} <= ways, lines
    assert {line["same_tokens"] for line in lines if "way" in line} == {1.0}
    demands = (tmp_path / "out" / "accepted.txt").read_text()
    assert re.search("^pass +weights as planned, in bytes: 2 of 2 variants$", demands, re.MULTILINE), demands
    assert "the row of table decoded by eager" in demands


def test_every_question_that_a_cpu_can_answer_is_answered(tmp_path: Path) -> None:
    command = [sys.executable, "bench/gpu/gpu_check.py", "--device", "cpu", "--out", str(tmp_path / "facts.json")]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=240)
    told = json.loads((tmp_path / "facts.json").read_text())
    assert len(told) == 3
    assert [fact for fact in told.values() if "failed" in fact] == []


GRAPH, EAGER = {"decode_path": "graph", "decode_tps": 150.0, "launch_share": 0.05}, {"decode_path": "eager", "decode_tps": 40.0}
ROW = {
    "method": "torch", "precision": "bf16", "batch": 1, "status": "ok", "reason": None, "mbu": 0.7, "decode_fallback": None,
    "started_at": pd.Timestamp("2026-01-01", tz="UTC"), "weight_bytes": 100, "predicted_weight_bytes": 100,
    "launch_share": None,
}  # fmt: skip
BESIDE = {"variant": "torch/bf16", "batch": 1, "same_tokens": 1.0}


def _demands(folder: Path, patch: pytest.MonkeyPatch, **table: object) -> tuple[list[str], list[str]]:
    """What is said of rows that reach everything, but for what ``table`` says of bf16 at batch 1: demands and further lines.

    ``speed`` is that of the graph in the lines of beside.py.
    """
    patch.syspath_prepend(ROOT / "bench" / "gpu")
    accepted = importlib.import_module("accepted")
    speed = table.pop("speed", 150.0)
    graphs = [{**ROW, **GRAPH, **table}, *({**ROW, **GRAPH, "batch": size} for size in (8, 32))]
    for stage, rows in {"eager": [{**ROW, **EAGER}], "table": graphs}.items():
        (folder / stage / "scenarios").mkdir(parents=True)
        frame = pd.DataFrame(rows).assign(scenario_id=[f"m/torch-bf16/tokens:480@{row['batch']}" for row in rows])
        frame.to_parquet(folder / stage / "scenarios" / "1.parquet")
    ways = [{**BESIDE, "way": "graph", "tokens_per_second": speed}, {**BESIDE, "way": "loop", "tokens_per_second": 155.0}]
    (folder / "beside.jsonl").write_text("".join(json.dumps(way) + "\n" for way in ways))
    lines = list(accepted.demands(accepted.rows_of(folder), accepted.ways_of(folder / "beside.jsonl")))
    return [str(line) for line in lines if line.judged], [str(line) for line in lines if not line.judged]


def test_what_a_first_run_has_to_show_is_told_with_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged, told = _demands(tmp_path, monkeypatch)
    assert [line.split(" ")[0] for line in judged] == ["pass"] * 6, judged
    assert "(>= 3): 3.75 (150.0 and 40.0 tokens/s)" in judged[0]
    assert "(>= 0.95): 0.968 (" in judged[1]
    assert told == []


@pytest.mark.parametrize(
    ("table", "at", "said"),
    [
        ({"decode_tps": 100.0}, 0, "FAIL .*: 2.50 "),
        ({"decode_path": "eager", "decode_fallback": "graph failed: why"}, 0, "not measured .*by eager: graph failed: why"),
        ({"status": "oom"}, 0, "not measured .*no row of the stage table is ok"),
        ({"speed": 140.0}, 1, "FAIL .*: 0.903 "),
        ({"mbu": 0.55}, 2, "FAIL .*batch 1, mbu .*: 0.550 "),
        ({"mbu": None}, 2, "not measured .*the row has none"),
        ({"weight_bytes": 101}, 5, r"FAIL .*: 1 of 2 variants \(table: torch/bf16 101, not 100\)"),
    ],
)
def test_what_is_not_reached_says_by_how_much_or_why(
    table: dict[str, object], at: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, _ = _demands(tmp_path, monkeypatch, **table)
    assert re.match(said, judged[at]), judged[at]


def test_what_figures_depend_on_is_told_besides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, told = _demands(tmp_path, monkeypatch, launch_share=0.4, decode_fallback="graph failed: why")
    assert [line.removeprefix("told").strip() for line in told] == [
        "torch/bf16 decodes eagerly: batch 1 (graph failed: why)",
        "torch/bf16 at batch 1 decodes by graph: launch share 40%",
    ]


def test_the_kit_names_tests_that_exist_and_the_versions_that_are_pinned() -> None:
    named = re.findall(r"tests/\S+\.py", (ROOT / "bench" / "gpu" / "remote.sh").read_text())
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(each.split("==") for each in project["optional-dependencies"]["tested"])
    carried = dict(re.findall(r"([\w-]+)==([\w.]+)", (ROOT / "bench" / "gpu" / "prepare.sh").read_text()))
    both = pins.keys() & carried.keys()
    assert len(both) >= 8
    assert {name: carried[name] for name in both} == {name: pins[name] for name in both}
