"""What a user writes: matrix files, prompts, and options of a run as the plugin reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantbench.planning import prompts
from quantbench.planning.options import RunOptions, plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import SearchStrategy

MATRIX = b"""models = ["canary"]
prompts = ["mixed", "ten@8", "tokens:64"]  # by name
control = true
probes = ["gguf/q4_k_m"]
energy = false

[methods]
torch = ["fp32", "bf16"]
gguf = ["q4_k_m", "q8_0"]

[artifacts]
theirs = "org/repo:Q4_K_M"

[conditions]
output_tokens = 32
seed = 7
device = "cpu"
reference = "torch/fp32"
server = "http://localhost:8080/v1"
"""
PROMPTS = "Once upon a time\n# a comment\nTwo\\nlines\n\n naïve ✓ \n".encode()
CONVERSATIONS = (
    b'{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]}\n'
    b'{"messages": [{"role": "user", "content": "Go on"}], "tools": null}\n'
)


def _planned(**given: Any) -> object:
    return plan(RunOptions.read(lambda option: given.get(option.key, option.default)))


def test_matrix(fuzz: Any, contents: Callable[..., SearchStrategy[bytes]], world: Path) -> None:
    def check(content: bytes) -> object:
        (world / "m.toml").write_bytes(content)
        return _planned(matrix="m.toml")

    fuzz(contents(MATRIX), check)
    assert fuzz.said


def test_prompts(fuzz: Any, contents: Callable[..., SearchStrategy[bytes]], world: Path) -> None:
    def check(content: bytes) -> None:
        for name in ("p.txt", "p.jsonl"):
            (world / name).write_bytes(content)
        for name in ("p.txt", "p.jsonl", "text:p.txt"):
            fuzz.survives(lambda name=name: prompts.load(name).content_hash())

    fuzz(contents(PROMPTS) | contents(CONVERSATIONS), check)
    assert fuzz.said
