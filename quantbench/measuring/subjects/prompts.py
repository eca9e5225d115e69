"""The prompt sets of a job as ids, and the context that holds them with their answers."""

from __future__ import annotations

import os
import pickle  # for what our own fork writes # nosec B403
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from quantbench.core.errors import ModelError
from quantbench.core.job import Job, Task
from quantbench.core.scenario import Conditions
from quantbench.core.trace import Reference
from quantbench.measuring.passes.similarity import REFERENCE_FILE
from quantbench.measuring.passes.text import Chunks, read_chunks
from quantbench.measuring.preload import is_without_torch
from quantbench.models.tokenizer import Tokenizer, encode_prompts
from quantbench.runtimes import open_tokenizer

_CONTEXT_STEP = 64

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """A task with its ids; ``reference`` is None where nothing can be compared.

    ``scored`` pairs ids that are read with those scored after them: the reference's continuations, or a text's chunk halves.
    ``rendered`` are the texts that a server is sent for conversations.
    """

    task: Task
    ids: tuple[tuple[int, ...], ...]
    reference: Reference | None
    scored: Chunks = ()
    rendered: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """What a server is sent for each prompt."""
        return self.rendered or self.task.prompts

    def answered(self, conditions: Conditions) -> Prompts:
        """The same with only the prompts that are timed and answered."""
        count = conditions.answered_prompts or None
        asked = replace(self.task, prompts=self.task.prompts[:count], conversations=self.task.conversations[:count])
        return replace(self, task=asked, ids=self.ids[:count], rendered=self.rendered[:count])


def read_prompts(job: Job) -> tuple[list[Prompts], int]:
    """The job's prompt sets as ids, and the context in tokens that holds them with their answers.

    A tokenizer is opened only where no reference has the ids. Where torch is kept out of this process, that happens in a fork,
    so that transformers does not count as memory of the runtime.
    """
    if is_without_torch() and any(task.reference is None for task in job.tasks):
        return _apart(lambda: _read(job))
    return _read(job)


def _read(job: Job) -> tuple[list[Prompts], int]:
    prompts = []
    limit = None
    tokenizer = None
    for task in job.tasks:
        if task.reference:
            reference = Reference.load(task.reference / REFERENCE_FILE)
            limit = reference.context_limit
            scored = tuple(zip(reference.prompt_tokens, reference.continuations, strict=True))
            prompts.append(Prompts(task=task, ids=reference.prompt_tokens, scored=scored, reference=reference))
        else:
            tokenizer = tokenizer or open_tokenizer(job.model)
            limit = tokenizer.context_limit
            prompts.append(read_without_reference(job, tokenizer, task))
    return prompts, context_for(job, prompts, limit)


def read_without_reference(job: Job, tokenizer: Tokenizer, task: Task) -> Prompts:
    """A task without a reference; a text can still be scored."""
    chunks = read_chunks(tokenizer, task.prompts[0], job.conditions) if task.is_text else ()
    prompts = [prompt for prompt, _ in chunks] or encode_prompts(tokenizer, task)
    return Prompts(task=task, ids=tuple(map(tuple, prompts)), scored=chunks, reference=None)


def context_for(job: Job, prompts: Sequence[Prompts], limit: int | None) -> int:
    """The context in tokens: as requested, or the shortest that holds everything. ModelError when a prompt is too long."""
    conditions = job.conditions
    available = min(bound for bound in (conditions.context or limit, limit or conditions.context, sys.maxsize) if bound)
    needed = 0
    for each in prompts:
        after = timed_tokens(job, each) if each.task.is_text or job.checkpoint.random_weights else _longest_answer(conditions)
        needed = max([needed, *(len(prompt) + len(scored) for prompt, scored in each.scored)])
        if each.task.is_text and needed > available:
            raise ModelError(
                f"a chunk of {needed} tokens is more than the {available} that the model was trained with; use a shorter "
                "--context"
            )
        for number, ids in enumerate(each.ids, start=1):
            needed = max(needed, len(ids) + after)
            if len(ids) + after > available:
                raise ModelError(
                    f"prompt {number} of {each.task.prompts_name!r} has {len(ids)} tokens and its answer {after}, more than "
                    f"the context of {available} tokens; shorten the prompt, or use a model with a longer context"
                )
    return conditions.context or min(available, -(-needed // _CONTEXT_STEP) * _CONTEXT_STEP)


def _longest_answer(conditions: Conditions) -> int:
    return max(conditions.output_tokens, conditions.answer_tokens, conditions.continuation_tokens)


def timed_tokens(job: Job, prompts: Prompts) -> int:
    """Tokens that the memory pass generates: as many as are timed, but no more than fit in a text's chunk."""
    length = job.conditions.output_tokens
    return min(length, len(prompts.scored[0][1])) if prompts.task.is_text else length


def _apart(work: Callable[[], _T]) -> _T:
    """Run ``work`` in a fork, whose imports and memory do not count as this process's; return or raise what it does.

    Only for single-threaded processes. ModelError where the fork ends without a result: something killed it.
    """
    reading, writing = os.pipe()
    forked = os.fork()
    if not forked:
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as stream:
                stream.write(_pickled(work))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read()
    _, status = os.waitpid(forked, 0)
    if not said:
        raise ModelError(f"the process that reads the prompts ended with {os.waitstatus_to_exitcode(status)} and no result")
    found, raised = pickle.loads(said)  # noqa: S301 - our own fork wrote it # nosec B301
    if raised is not None:
        raise raised
    result: _T = found
    return result


def _pickled(work: Callable[[], _T]) -> bytes:
    try:
        return pickle.dumps((work(), None))
    except Exception as error:  # noqa: BLE001 - it is raised again in the parent
        return pickle.dumps((None, error))
