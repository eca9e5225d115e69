"""Text to ids and back, in one place, so that every method sees the same ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from quantbench.core.job import Task
from quantbench.models.chat import Template
from quantbench.models.rendered import rendered

_TAIL = 16
"""How many preceding ids are enough context to see what the next one adds."""


DECODER_FILE = "decoder.json"


class Decoder(Protocol):
    """Ids back to text. ``ends`` are the ids after which an answer is over: end of text, of turn and of message."""

    ends: frozenset[int]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``."""


class Tokenizer(Decoder, Protocol):
    """A model's own tokenizer. ``context_limit`` is the context length the model was trained with.

    ``bos`` is the text of the token that begins a sequence, empty if there is none.
    """

    context_limit: int | None
    bos: str

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, with BOS in front if the model was trained with one."""

    def encode_literal(self, text: str) -> list[int]:
        """The same for a running text, in which ``<s>`` and the like are plain characters, not special tokens."""

    @property
    def template(self) -> Template:
        """The model's chat template, which ``rendered`` makes texts with."""

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of such a text: with its special tokens, and without a BOS but its own."""

    def backend(self) -> str | None:
        """The serialized backend of ``tokenizers`` that decodes; None if there is none, or the class modifies its output."""


def encode_prompts(tokenizer: Tokenizer, task: Task) -> list[list[int]]:
    """Ids of a task's prompts; if it sets a length, its one prompt is repeated and cut to that length.

    ModelError, with its number, for a conversation that the model's template refuses.
    """
    if task.conversations:
        return [tokenizer.encode_rendered(text) for text in _rendered(tokenizer, task)]
    if not task.tokens:
        return [tokenizer.encode(text) for text in task.prompts]
    (text,) = task.prompts
    ids = tokenizer.encode(text)
    while len(ids) < task.tokens:
        text = f"{text} {text}"
        ids = tokenizer.encode(text)
    return [ids[: task.tokens]]


def completion_texts(tokenizer: Tokenizer, task: Task) -> tuple[str, ...]:
    """What a server is sent for each prompt, to go on from as it stands: of a conversation the text that the template makes.

    A server puts BOS in front by itself, so the text's own is left out where the ids come out the same.
    """
    return tuple(_without_bos(tokenizer, text) for text in _rendered(tokenizer, task)) if task.conversations else task.prompts


def _rendered(tokenizer: Tokenizer, task: Task) -> list[str]:
    return rendered(tokenizer.template, task.conversations, task.prompts_name)


def _without_bos(tokenizer: Tokenizer, text: str) -> str:
    rest = text.removeprefix(tokenizer.bos)
    return rest if tokenizer.encode(rest) == tokenizer.encode_rendered(text) else text


def added_text(tokenizer: Tokenizer, before: Sequence[int], token: int) -> str:
    """The text that ``token`` adds after ``before``; empty for special tokens and for incomplete characters."""
    tail = list(before)[-_TAIL:]
    base = tokenizer.decode(tail)
    whole = tokenizer.decode([*tail, token])
    added = whole.removeprefix(base) if whole.startswith(base) else ""
    return "" if "\ufffd" in added else added


def save_decoder(tokenizer: Tokenizer, said: Iterable[Sequence[int]], folder: Path) -> None:
    """Write a decoder for ``open_decoder`` into ``folder``, provided it decodes all ids in ``said`` as the tokenizer does.

    It is the backend of transformers' tokenizer: importing transformers would take longer than many an answer.
    """
    backend = tokenizer.backend()
    if backend is None:
        return
    decoder = SavedDecoder(tokenizer.ends, backend)
    if all(decoder.decode(ids) == tokenizer.decode(ids) for ids in said):
        (folder / DECODER_FILE).write_text(json.dumps({"ends": sorted(tokenizer.ends), "backend": backend}))


class SavedDecoder:
    """The decoder that ``save_decoder`` wrote."""

    def __init__(self, ends: frozenset[int], backend: str) -> None:
        """``backend`` is a serialized tokenizer of the package ``tokenizers``."""
        from tokenizers import Tokenizer as Backend

        self.ends = ends
        self._backend = Backend.from_str(backend)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``, without special ones."""
        return str(self._backend.decode(list(tokens), skip_special_tokens=True))
