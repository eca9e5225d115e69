"""The kit for a GPU machine without network, rehearsed on the CPU: it still runs after the code has moved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
torch = ["fp32"]

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
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    said = _bash(
        checkout, ".gpukit/remote.sh", "table:90", "beside:90",
        GPUKIT_PYTHON=sys.executable, GPUKIT_DEVICE="cpu", GPUKIT_MODEL=f"dummy:{tmp_path / 'config.json'}",
        GPUKIT_WORK=str(tmp_path / "work"), OUT=str(tmp_path / "out"), GPUKIT_VARIANTS="torch/bf16",
    )  # fmt: skip
    rows = pd.read_parquet(tmp_path / "work" / "results" / "table" / "scenarios")
    assert set(rows["status"]) == {"ok"}, said
    assert len(rows) == 2
    assert (tmp_path / "out" / "table.tar.gz").is_file()
    lines = [json.loads(line) for line in (tmp_path / "out" / "beside.jsonl").read_text().splitlines()]
    ways = {line.get("way") for line in lines if "failed" not in line}
    assert {"quantbench", "generate", "static"} <= ways, lines


def test_every_question_that_a_cpu_can_answer_is_answered(tmp_path: Path) -> None:
    command = [sys.executable, "bench/gpu/gpu_check.py", "--device", "cpu", "--out", str(tmp_path / "facts.json")]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=240)
    told = json.loads((tmp_path / "facts.json").read_text())
    assert len(told) == 3
    assert [fact for fact in told.values() if "failed" in fact] == []
