"""The similarity pass: the variant scores the reference's continuations, and answers greedily on its own.

Logits are streamed against the reference's memory-mapped log-probabilities; only per-position columns are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantbench.errors import ModelError
from quantbench.methods import LoadedModel
from quantbench.models._tokenizer import Tokenizer
from quantbench.trace import Answer, Reference

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOGPROBS_FILE = "logprobs.npy"
REFERENCE_FILE = "reference.json"


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-probabilities of logits [positions, vocabulary], float32 with the normalizer accumulated in float64."""
    import numpy as np

    shifted = logits - logits.max(axis=1, keepdims=True)
    normalizer = np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64))
    result: NDArray[np.float32] = (shifted - normalizer).astype(np.float32)
    return result


def score_continuations(model: LoadedModel, reference: Reference, folder: Path, out: Path) -> None:
    """Compare the variant's distribution with the reference's at every position of the continuations; write the columns.

    KLD is KL(reference || variant) in nats over the whole vocabulary, summed in float64. Raises ModelError when the
    vocabularies differ.
    """
    import numpy as np

    expected = np.load(folder / LOGPROBS_FILE, mmap_mode="r", allow_pickle=False)
    parts: dict[str, list[NDArray[np.generic]]] = {name: [] for name in ("prompt", "kld", "nll", "nll_reference", "top1")}
    row = 0
    for index, (prompt, continuation) in enumerate(zip(reference.prompt_tokens, reference.continuations, strict=True)):
        targets = np.asarray(continuation)
        done = 0
        for logits in model.score([*prompt, *continuation[:-1]], first=len(prompt) - 1):
            if logits.shape[1] < expected.shape[1]:
                raise ModelError(
                    f"the variant has {logits.shape[1]} vocabulary entries and the reference {expected.shape[1]}; "
                    "give a reference with the same vocabulary"
                )
            count = len(logits)
            variant = log_softmax(logits[:, : expected.shape[1]])
            wanted = np.asarray(expected[row : row + count])
            target = targets[done : done + count]
            lines = np.arange(count)
            parts["prompt"].append(np.full(count, index, dtype=np.int32))
            parts["kld"].append((np.exp(wanted, dtype=np.float64) * (wanted.astype(np.float64) - variant)).sum(axis=1))
            parts["nll"].append(-variant[lines, target].astype(np.float64))
            parts["nll_reference"].append(-wanted[lines, target].astype(np.float64))
            parts["top1"].append(variant.argmax(axis=1) == wanted.argmax(axis=1))
            row += count
            done += count
    np.savez(out, **{name: np.concatenate(arrays) for name, arrays in parts.items()})


def answer_greedily(
    model: LoadedModel, prompts: Sequence[tuple[str, Sequence[int]]], length: int, tokenizer: Tokenizer
) -> tuple[Answer, ...]:
    """Free-running greedy answers, cut after the first end-of-sequence id."""
    said = [tuple(model.generate(ids, length)) for _, ids in prompts]
    return answers_of(said, prompts, tokenizer)


def answers_of(
    said: Sequence[tuple[int, ...]], prompts: Sequence[tuple[str, Sequence[int]]], tokenizer: Tokenizer
) -> tuple[Answer, ...]:
    """Greedy ids as answers, cut after the first end-of-sequence id."""
    answers = []
    for (text, ids), spoken in zip(prompts, said, strict=True):
        tokens = _until_end(spoken, tokenizer.ends)
        answers.append(Answer(prompt=text, prompt_tokens=tuple(ids), tokens=tokens, text=tokenizer.decode(tokens)))
    return tuple(answers)


def _until_end(tokens: tuple[int, ...], ends: frozenset[int]) -> tuple[int, ...]:
    for position, token in enumerate(tokens):
        if token in ends:
            return tokens[: position + 1]
    return tokens
