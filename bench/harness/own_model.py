"""The first run of a model of one's own: a checkpoint in SmolLM-135M's shape with fixed random weights.

python bench/harness/own_model.py FOLDER [LAYERS]     writes the checkpoint and measures nothing
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ratios import Result

LAYERS = 30
LIMIT_S = 720
_SEED = 20
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json")


def build(folder: Path, layers: int = LAYERS) -> None:
    """Write the checkpoint: bfloat16, tied embeddings; the canary's tokenizer, beyond whose 2048 ids rows have no text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from quantbench.models import MODELS

    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=2048, rms_norm_eps=1e-5, bos_token_id=1,
        eos_token_id=2, initializer_range=1 / 24, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(_SEED)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copyfile(MODELS["canary"].folder() / name, folder / name)


def own_model() -> Iterator[Result]:
    """The whole first run with an empty cache: seconds, rows that are ok, and what was estimated first and after a variant."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build(folder / "model")
        command = [sys.executable, "-c", "from quantbench.cli import main; main()", "run", "--model", str(folder / "model")]
        started = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, "QUANTBENCH_CACHE": str(folder / "cache")}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        first, after = _estimates(done.stdout + done.stderr)
        statuses = Counter(re.findall(r"quantbench: \d+ of \d+, .*?: (\w+) after", done.stderr + done.stdout))
    ended = ", ".join(f"{count} {status}" for status, count in statuses.items())
    name = f"a 135M of one's own; said {first}, then {after} left"
    yield Result(name, f"{seconds:.0f} s", ended, seconds, f"<= {LIMIT_S}")
    yield Result("rows that are not ok", ended, "", float(statuses.total() - statuses["ok"]), "<= 0")


def _estimates(said: str) -> tuple[str, str]:
    """What a run said of its length before it started, and of what was left after its first variant."""
    first = re.search(r"jobs: about ([\w ]+?) \(", said)
    after = re.search(r"quantbench: 1 of \d+, .* after .*, about ([\w ]+) left", said)
    return first[1] if first else "-", after[1] if after else "-"


if __name__ == "__main__":
    build(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
