"""The similarity pass: the variant scores the reference's continuations, and answers greedily on its own.

Logits are streamed against the reference's memory-mapped log-probabilities; only per-position columns are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quantbench.core.errors import ModelError
from quantbench.core.trace import Answer
from quantbench.methods import LoadedModel, until_end
from quantbench.models.tokenizer import Decoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOGPROBS_FILE = "logprobs.npy"
REFERENCE_FILE = "reference.json"

WRONG_COUNT = "the method did not score the {} requested positions; its score() must run from 'first' to the last one"

BLOCK_VALUES = 1 << 18
"""Values compared at once: as many as stay in a core's cache from one step to the next, as threads take turns between steps."""


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-probabilities of logits [positions, vocabulary], float32 with the normalizer accumulated in float64."""
    import numpy as np

    result = np.empty(logits.shape, dtype=np.float32)
    _log_softmax(logits, result, np.empty_like(result))
    return result


def _log_softmax(
    logits: NDArray[np.float32], out: NDArray[np.float32], scratch: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Fill ``out``, and ``scratch`` with exponentials; return the logarithms [positions, 1] of what these add up to."""
    import numpy as np

    np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
    normalizer: NDArray[np.float64] = np.log(np.exp(out, out=scratch).sum(axis=1, keepdims=True, dtype=np.float64))
    coarse = normalizer.astype(np.float32)  # in two steps of float32, each of half the traffic of one in float64
    np.subtract(out, coarse, out=out)
    np.subtract(out, (normalizer - coarse).astype(np.float32), out=out)
    return normalizer


Scored = Sequence[tuple[Sequence[int], Sequence[int]]]
"""Ids that are only read, and ids that are scored after them: prompt and continuation, or the halves of a text's chunk."""


class Scorer(Protocol):
    """The part of a LoadedModel that this pass uses."""

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """See LoadedModel."""


def score_columns(
    model: Scorer,
    scored: Scored,
    reference: Path | None,
    out: Path,
    *,
    threads: int = 1,
    after_each: Callable[[], None] = lambda: None,
) -> tuple[float, ...]:
    """Score every continuation, compare with the reference's distribution at every position, and write the columns.

    ``reference`` is the folder with the reference's log-probabilities. KLD is KL(reference || variant) in nats over the whole
    vocabulary, summed in float64, on ``threads`` threads, which rest while the model works; ``ear`` is the sum over it of the
    smaller probability, ``confidence`` the reference's largest one. Without a reference only ``prompt`` and ``nll`` are
    written. Returns the seconds of each continuation; ``after_each`` is called after each.
    Raises ModelError when the reference's vocabulary is the larger one.
    """
    import numpy as np

    expected = np.load(reference / LOGPROBS_FILE, mmap_mode="r", allow_pickle=False) if reference else None
    parts: list[dict[str, NDArray[np.generic]]] = []
    taken_s: list[float] = []
    row = 0
    with ThreadPoolExecutor(threads) as pool:
        for index, (prompt, continuation) in enumerate(scored):
            started = time.perf_counter()
            targets = np.asarray(continuation)
            done = 0
            for logits in model.score([*prompt, *continuation[:-1]], first=len(prompt) - 1):
                count = len(logits)
                if done + count > len(continuation):
                    break
                wanted = None if expected is None else expected[row : row + count]
                columns = _compare(logits, wanted, targets[done : done + count], pool, threads)
                parts.append({"prompt": np.full(count, index, dtype=np.int32), **columns})
                row += count
                done += count
            if done != len(continuation):
                raise ModelError(WRONG_COUNT.format(len(continuation)))
            taken_s.append(time.perf_counter() - started)
            after_each()
    np.savez(out, **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    return tuple(taken_s)


def _compare(
    logits: NDArray[np.float32],
    expected: NDArray[np.float32] | None,
    targets: NDArray[np.int64],
    pool: Executor,
    threads: int,
) -> dict[str, NDArray[np.generic]]:
    """The columns of a chunk of positions but ``prompt``, as ``Trace`` lists them."""
    import numpy as np

    if expected is not None and logits.shape[1] < expected.shape[1]:
        raise ModelError(
            f"the variant has {logits.shape[1]} vocabulary entries and the reference {expected.shape[1]}; "
            "give a reference with the same vocabulary"
        )
    width = logits.shape[1] if expected is None else expected.shape[1]
    step = max(1, BLOCK_VALUES // width)
    share = step * -(-len(logits) // (step * threads))
    work = partial(_compare_rows, logits[:, :width], expected, targets, step)
    parts = list(pool.map(work, [range(start, min(start + share, len(logits))) for start in range(0, len(logits), share)]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _compare_rows(
    logits: NDArray[np.float32], expected: NDArray[np.float32] | None, targets: NDArray[np.int64], step: int, rows: range
) -> dict[str, NDArray[np.generic]]:
    """The columns of some rows, ``step`` rows at a time in the same three buffers."""
    import numpy as np

    names = ("nll",) if expected is None else ("nll", "kld", "nll_reference", "ear", "confidence")
    columns: dict[str, NDArray[Any]] = {name: np.empty(len(rows)) for name in names}
    if expected is not None:
        columns["top1"] = np.empty(len(rows), dtype=bool)
    buffers = np.empty((3, min(step, len(rows)), logits.shape[1]), dtype=np.float32)
    for start in rows[::step]:
        here = slice(start, min(start + step, rows.stop))
        into = slice(here.start - rows.start, here.stop - rows.start)
        variant, ours, theirs = buffers[:, : here.stop - here.start]
        normalizer = _log_softmax(logits[here], variant, ours)
        lines, target = np.arange(len(variant)), targets[here]
        columns["nll"][into] = -variant[lines, target]
        if expected is not None:
            wanted = np.asarray(expected[here])
            likeliest = wanted.argmax(axis=1)
            columns["nll_reference"][into] = -wanted[lines, target]
            columns["top1"][into] = variant.argmax(axis=1) == likeliest
            np.subtract(wanted, variant, out=variant)
            np.multiply(np.exp(wanted, out=theirs), variant, out=variant)
            columns["kld"][into] = variant.sum(axis=1, dtype=np.float64)
            columns["confidence"][into] = theirs[lines, likeliest]
            np.multiply(ours, np.exp(-normalizer).astype(np.float32), out=ours)
            np.minimum(ours, theirs, out=ours)
            columns["ear"][into] = np.minimum(ours.sum(axis=1), 1)  # rounding may put equal ones above 1
    return columns


def answer_greedily(
    model: LoadedModel, prompts: Sequence[tuple[str, Sequence[int]]], length: int, tokenizer: Decoder
) -> tuple[Answer, ...]:
    """Free-running greedy answers, cut after the first end-of-sequence id."""
    said = [until_end(model.generate(ids, length), tokenizer.ends) for _, ids in prompts]
    return answers_of(said, prompts, tokenizer)


def answers_of(
    said: Sequence[tuple[int, ...]], prompts: Sequence[tuple[str, Sequence[int]]], tokenizer: Decoder
) -> tuple[Answer, ...]:
    """Greedily generated ids as answers, cut after the first end-of-sequence id."""
    answers = []
    for (text, ids), spoken in zip(prompts, said, strict=True):
        tokens = until_end(spoken, tokenizer.ends)
        answers.append(Answer(prompt=text, prompt_tokens=tuple(ids), tokens=tokens, text=tokenizer.decode(tokens)))
    return tuple(answers)
