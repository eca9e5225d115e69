"""Our side of a comparison with llama.cpp's own tools, in a process of its own, as theirs is.

    python bench/harness/ours.py answers|reference|score 'JSON'

The last line printed is JSON: tokens/s of every repetition, by phase.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from quantbench.core.job import Task
from quantbench.core.scenario import Conditions, Scenario, Variant
from quantbench.core.trace import Reference
from quantbench.measuring.passes.latency import timed_answer
from quantbench.measuring.passes.reference import make_reference
from quantbench.measuring.passes.similarity import REFERENCE_FILE, score_columns
from quantbench.methods import METHODS, LoadedModel, Settings
from quantbench.models.checkpoint import resolve
from quantbench.runtimes import open_tokenizer

BOS = 1
LEAST_ID, IDS = 3, 2000
"""Ids that every model here has, after the special ones."""


def main() -> None:
    """Measure what the command line names."""
    what, asked = sys.argv[1], json.loads(sys.argv[2])
    conditions = Conditions(chunks=asked.get("chunks", 0), context=asked["context"])
    method, _, precision = asked["variant"].partition("/")
    variant = Variant(method=method, precision=precision)
    scenario = Scenario(model=asked["model"], variant=variant, prompts="two", conditions=conditions)
    settings = Settings(checkpoint=resolve(asked["model"]), threads=asked["threads"], context=asked["context"])
    with METHODS[method].open(scenario, settings) as model:
        match what:
            case "answers":
                found = answers(model, asked)
            case "reference":
                found = reference(model, asked, settings, conditions)
            case "score":
                found = score(model, asked)
    print(json.dumps(found))


def answers(model: LoadedModel, asked: dict[str, Any]) -> dict[str, list[float]]:
    """Prefill and decode tokens/s, after one of each that is not counted; decoding starts at BOS, as llama-bench's."""
    prompt = [BOS, *(LEAST_ID + index * 7 % IDS for index in range(asked["prompt"] - 1))]
    timed_answer(model, 0, prompt, 1)
    prefills = [timed_answer(model, 0, prompt, 1)[0].prefill_s for _ in range(asked["repetitions"])]
    timed_answer(model, 0, [BOS], 2)
    gaps = [timed_answer(model, 0, [BOS], asked["length"] + 1)[0].gaps_s for _ in range(asked["repetitions"])]
    return {
        "prefill": [len(prompt) / seconds for seconds in prefills],
        "decode": [asked["length"] / sum(each) for each in gaps],
    }


def reference(model: LoadedModel, asked: dict[str, Any], settings: Settings, conditions: Conditions) -> dict[str, list[float]]:
    """Write the log-probabilities that variants are compared with."""
    task = Task(prompts_name="text", prompts=(Path(asked["text"]).read_text(),), reference=None, is_text=True)
    folder, checkpoint = Path(asked["folder"]), settings.checkpoint
    make_reference(model, open_tokenizer(checkpoint), checkpoint=checkpoint, task=task, conditions=conditions, folder=folder)
    return {}


def score(model: LoadedModel, asked: dict[str, Any]) -> dict[str, list[float]]:
    """Tokens/s of scoring a text against the reference, after a chunk that is not counted."""
    folder = Path(asked["folder"])
    known = Reference.load(folder / REFERENCE_FILE)
    scored = list(zip(known.prompt_tokens, known.continuations, strict=True))
    with tempfile.TemporaryDirectory() as scratch:
        columns, threads = Path(scratch, "columns.npz"), asked["threads"]
        score_columns(model, scored[:1], folder, columns, threads=threads)
        started = time.perf_counter()
        score_columns(model, scored, folder, columns, threads=threads)
        seconds = time.perf_counter() - started
    return {"score": [asked["context"] * len(scored) / seconds]}


if __name__ == "__main__":
    main()
