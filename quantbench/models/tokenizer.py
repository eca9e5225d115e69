"""Text to ids and back, once, so that every method sees the same ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from quantbench.core.job import Task

_TAIL = 16
"""Ids that are enough to see what the next one adds."""


DECODER_FILE = "decoder.json"


class Decoder(Protocol):
    """Ids back to text. ``ends`` are the ids after which nothing of a sequence counts: end of text, of turn and of message."""

    ends: frozenset[int]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``."""


class Tokenizer(Decoder, Protocol):
    """A model's own tokenizer. ``context_limit`` is what it was trained at."""

    context_limit: int | None

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, with BOS in front where the model was trained with one."""

    def encode_literal(self, text: str) -> list[int]:
        """The same of a running text, in which ``<s>`` and the like are what they look like and no special tokens."""

    def backend(self) -> str | None:
        """What decodes, as tokenizers writes it; None where there is none, or the class adds something of its own."""


def encode_prompts(tokenizer: Tokenizer, task: Task) -> list[list[int]]:
    """Ids of a task's prompts; where it asks for a length, its one prompt is repeated until it is as long, and cut."""
    if not task.tokens:
        return [tokenizer.encode(text) for text in task.prompts]
    (text,) = task.prompts
    ids = tokenizer.encode(text)
    while len(ids) < task.tokens:
        text = f"{text} {text}"
        ids = tokenizer.encode(text)
    return [ids[: task.tokens]]


def added_text(tokenizer: Tokenizer, before: Sequence[int], token: int) -> str:
    """The text that ``token`` adds after ``before``; empty for special tokens and for parts of a character."""
    tail = list(before)[-_TAIL:]
    base = tokenizer.decode(tail)
    whole = tokenizer.decode([*tail, token])
    added = whole.removeprefix(base) if whole.startswith(base) else ""
    return "" if "\ufffd" in added else added


def save_decoder(tokenizer: Tokenizer, said: Iterable[Sequence[int]], folder: Path) -> None:
    """Write into ``folder`` what ``open_decoder`` reads, where it decodes all that was ``said`` as the tokenizer does.

    It is the backend of transformers' tokenizer as it is in memory. To import transformers takes longer than many an answer.
    """
    backend = tokenizer.backend()
    if backend is None:
        return
    decoder = SavedDecoder(tokenizer.ends, backend)
    if all(decoder.decode(ids) == tokenizer.decode(ids) for ids in said):
        (folder / DECODER_FILE).write_text(json.dumps({"ends": sorted(tokenizer.ends), "backend": backend}))


class SavedDecoder:
    """What ``save_decoder`` wrote."""

    def __init__(self, ends: frozenset[int], backend: str) -> None:
        """``backend`` as tokenizers writes it."""
        from tokenizers import Tokenizer as Backend

        self.ends = ends
        self._backend = Backend.from_str(backend)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``, without special ones."""
        return str(self._backend.decode(list(tokens), skip_special_tokens=True))
