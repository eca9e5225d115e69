"""Makes the artifact that variants are compared with: the reference's ids, continuations, answers and log-probabilities."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from quantbench.core.errors import ModelError
from quantbench.core.job import Checkpoint, Task
from quantbench.core.scenario import Conditions
from quantbench.core.trace import Answer, Reference
from quantbench.core.units import format_bytes
from quantbench.measuring.passes.similarity import (
    LOGPROBS_FILE,
    REFERENCE_FILE,
    WRONG_COUNT,
    Scored,
    answer_greedily,
    log_softmax,
)
from quantbench.measuring.passes.text import read_chunks
from quantbench.methods import LoadedModel, SamplesTogether, Sampling, until_end
from quantbench.models.checkpoint import checkpoint_dtype, count_parameters
from quantbench.models.tokenizer import Tokenizer, encode_prompts, save_decoder

_FREE_SHARE = 0.9
"""The log-probabilities may take at most this share of the free disk."""

_FLOAT32_BYTES = 4


def make_reference(
    model: LoadedModel, tokenizer: Tokenizer, *, checkpoint: Checkpoint, task: Task, conditions: Conditions, folder: Path
) -> None:
    """Sample, answer and score with the loaded reference; fill ``folder`` with reference.json, logprobs.npy, decoder.json.

    A continuation ends with the first end-of-sequence id, since what a model says after it is noise. One that ends at once has
    only that position to score. For a text nothing is sampled or answered: the second halves of its own chunks are scored.
    ModelError when the method generates nothing.
    """
    scored: Scored
    answers: tuple[Answer, ...] = ()
    if task.is_text:
        scored = read_chunks(tokenizer, task.prompts[0], conditions)
    else:
        prompts = encode_prompts(tokenizer, task)
        said = _continued(model, prompts, conditions, tokenizer.ends)
        scored = list(zip(prompts, said, strict=True))
        if not all(continuation for _, continuation in scored):
            raise ModelError("the reference generated nothing after a prompt; its generate() must yield the requested tokens")
        asked = list(zip(task.prompts, prompts, strict=True))[: conditions.answered_prompts or None]
        answers = answer_greedily(model, asked, conditions.answer_tokens, tokenizer)
        save_decoder(tokenizer, (*said, *(each.tokens or () for each in answers)), folder)
    _write_logprobs(model, scored, folder)
    Reference(
        parameters=count_parameters(checkpoint),
        checkpoint_dtype=checkpoint_dtype(checkpoint.path) if checkpoint.kind == "hf" else "",
        context_limit=tokenizer.context_limit,
        prompt_tokens=tuple(tuple(prompt) for prompt, _ in scored),
        continuations=tuple(tuple(continuation) for _, continuation in scored),
        answers=answers,
    ).save(folder / REFERENCE_FILE)


def _continued(
    model: LoadedModel, prompts: Sequence[Sequence[int]], conditions: Conditions, ends: frozenset[int]
) -> Sequence[tuple[int, ...]]:
    """The model's continuation of each prompt, each sampled with its own seed."""
    limit, first = conditions.continuation_tokens, conditions.seed * 1000
    samplings = [Sampling(seed=seed) for seed in range(first, first + len(prompts))]
    if isinstance(model, SamplesTogether):
        return model.sample_together(prompts, limit, samplings, ends)
    return [until_end(model.generate(prompt, limit, each), ends) for prompt, each in zip(prompts, samplings, strict=True)]


def _write_logprobs(model: LoadedModel, scored: Scored, folder: Path) -> None:
    """Write log-probabilities, float32 [scored positions, vocabulary], as they stream: memory never holds all of them."""
    import numpy as np

    counts = [len(continuation) for _, continuation in scored]
    file = None
    row = 0
    for prompt, continuation in scored:
        end = row + len(continuation)
        for logits in model.score([*prompt, *continuation[:-1]], first=len(prompt) - 1):
            if file is None:
                _require_room(folder, counts, logits.shape[1])
                file = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]  # numpy has no annotation here
                    folder / LOGPROBS_FILE, mode="w+", dtype=np.float32, shape=(sum(counts), logits.shape[1])
                )
            if row + len(logits) > end:
                break
            file[row : row + len(logits)] = log_softmax(logits)
            row += len(logits)
        if row != end:
            raise ModelError(WRONG_COUNT.format(len(continuation)))
    if file is not None:
        file.flush()


def _require_room(folder: Path, counts: list[int], vocabulary: int) -> None:
    """ModelError where the log-probabilities would not fit on the disk."""
    needed = sum(counts) * vocabulary * _FLOAT32_BYTES
    available = int(shutil.disk_usage(folder).free * _FREE_SHARE)
    if needed > available:
        fitting = len(counts) * available // needed
        fewer = f" (of a text, at most --chunks {fitting})" if fitting else ""
        raise ModelError(
            f"the reference's log-probabilities take {format_bytes(needed)} ({sum(counts)} positions x vocabulary of "
            f"{vocabulary} x {_FLOAT32_BYTES} bytes) and only {format_bytes(available)} of the cache's disk may be used; "
            f"score fewer prompts{fewer}, or set QUANTBENCH_CACHE to a folder on a larger disk"
        )
