"""Make the artifact that variants are compared with: the reference's ids, continuations, answers and log-probabilities."""

from __future__ import annotations

from pathlib import Path

from quantbench.job import Checkpoint, Task
from quantbench.methods import LoadedModel, Sampling
from quantbench.models._checkpoint import checkpoint_dtype, count_parameters
from quantbench.models._tokenizer import Tokenizer
from quantbench.passes.similarity import LOGPROBS_FILE, REFERENCE_FILE, answer_greedily, log_softmax
from quantbench.scenario import Conditions
from quantbench.trace import Reference


def make_reference(
    model: LoadedModel, tokenizer: Tokenizer, *, checkpoint: Checkpoint, task: Task, conditions: Conditions, folder: Path
) -> None:
    """Sample, answer and score with the loaded reference; fill ``folder`` with reference.json and logprobs.npy.

    The log-probabilities are float32 [continuation positions of all prompts, vocabulary], written as they stream.
    """
    import numpy as np

    prompts = [tokenizer.encode(text) for text in task.prompts]
    continuations = [
        tuple(model.generate(prompt, conditions.continuation_tokens, Sampling(seed=conditions.seed * 1000 + index)))
        for index, prompt in enumerate(prompts)
    ]
    file = None
    row = 0
    for prompt, continuation in zip(prompts, continuations, strict=True):
        for logits in model.score([*prompt, *continuation[:-1]], first=len(prompt) - 1):
            if file is None:
                shape = (len(prompts) * conditions.continuation_tokens, logits.shape[1])
                file = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]  # numpy has no annotation here
                    folder / LOGPROBS_FILE, mode="w+", dtype=np.float32, shape=shape
                )
            file[row : row + len(logits)] = log_softmax(logits)
            row += len(logits)
    if file is not None:
        file.flush()
    answers = answer_greedily(model, list(zip(task.prompts, prompts, strict=True)), conditions.answer_tokens, tokenizer)
    Reference(
        parameters=count_parameters(checkpoint),
        checkpoint_dtype=checkpoint_dtype(checkpoint.path) if checkpoint.kind == "hf" else "",
        context_limit=tokenizer.context_limit,
        prompt_tokens=tuple(tuple(prompt) for prompt in prompts),
        continuations=tuple(continuations),
        answers=answers,
    ).save(folder / REFERENCE_FILE)
