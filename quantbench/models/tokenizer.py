"""Text to ids and back, once, so that every method sees the same ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from quantbench.core.errors import ModelError
from quantbench.core.job import Checkpoint, Task
from quantbench.models.config import read_config
from quantbench.models.gguf import GgufHeader

_COMMON = "transformers.tokenization_utils"
"""Modules of what decodes for all tokenizers with a backend."""

_TAIL = 16
"""Ids that are enough to see what the next one adds."""

_TURN_ENDS = frozenset(
    ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]")
)
"""Special tokens that end a turn or a message, by the names that llama.cpp knows them by (src/llama-vocab.cpp).

A folder's configuration often names the end of the text alone.
"""


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


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint: transformers' for a folder, llama.cpp's for a GGUF file."""
    return _GgufTokenizer(checkpoint) if checkpoint.kind == "gguf" else _FolderTokenizer(checkpoint)


def save_decoder(tokenizer: Tokenizer, said: Iterable[Sequence[int]], folder: Path) -> None:
    """Write into ``folder`` what ``open_decoder`` reads, where it decodes all that was ``said`` as the tokenizer does.

    It is the backend of transformers' tokenizer as it is in memory. To import transformers takes longer than many an answer.
    """
    backend = tokenizer.backend() if isinstance(tokenizer, _FolderTokenizer) else None
    if backend is None:
        return
    decoder = _SavedDecoder(tokenizer.ends, backend)
    if all(decoder.decode(ids) == tokenizer.decode(ids) for ids in said):
        (folder / DECODER_FILE).write_text(json.dumps({"ends": sorted(tokenizer.ends), "backend": backend}))


def open_decoder(checkpoint: Checkpoint, reference: Path | None) -> Decoder:
    """What a ``reference`` of the checkpoint saved, or else the checkpoint's tokenizer."""
    saved = reference / DECODER_FILE if reference else None
    if saved is None or not saved.is_file():
        return open_tokenizer(checkpoint)
    body = json.loads(saved.read_text())
    return _SavedDecoder(frozenset(body["ends"]), body["backend"])


class _SavedDecoder:
    def __init__(self, ends: frozenset[int], backend: str) -> None:
        from tokenizers import Tokenizer as Backend

        self.ends = ends
        self._backend = Backend.from_str(backend)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._backend.decode(list(tokens), skip_special_tokens=True))


class _FolderTokenizer:
    def __init__(self, checkpoint: Checkpoint) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                checkpoint.path, trust_remote_code=checkpoint.trust_remote_code
            )
        except (OSError, ValueError) as error:
            first_line = (str(error).strip().splitlines() or ["no message"])[0]
            raise ModelError(f"{checkpoint.path} has no tokenizer that transformers can load ({first_line})") from error
        config = read_config(checkpoint.path)
        config = {**(config.get("text_config") or {}), **config}  # a composite model says there what its text part is
        generation = checkpoint.path / "generation_config.json"
        asked = read_config(generation) if generation.is_file() else {}
        named = (config.get("eos_token_id"), asked.get("eos_token_id"), self._tokenizer.eos_token_id)
        turns = (number for name, number in self._tokenizer.get_added_vocab().items() if name in _TURN_ENDS)
        self.ends = frozenset((*(end for each in named for end in _listed(each)), *turns))
        self.context_limit = config.get("max_position_embeddings")

    def encode(self, text: str) -> list[int]:
        return self._encode(text)

    def encode_literal(self, text: str) -> list[int]:
        return self._encode(text, split_special_tokens=True, verbose=False)  # a text is longer than any context

    def _encode(self, text: str, **how: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=True, **how)
        bos = self._tokenizer.bos_token_id
        if getattr(self._tokenizer, "add_bos_token", False) and bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def backend(self) -> str | None:
        """What decodes, as tokenizers writes it; None where the tokenizer's class adds something of its own."""
        found = getattr(self._tokenizer, "backend_tokenizer", None)
        own = (getattr(type(self._tokenizer), name, None) for name in ("decode", "_decode"))
        if found is None or not all(getattr(each, "__module__", "").startswith(_COMMON) for each in own):
            return None
        return str(found.to_str())


def _listed(ends: int | list[int] | None) -> list[int]:
    """End-of-sequence ids as a list; configurations have one, several or none."""
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


class _GgufTokenizer:
    def __init__(self, checkpoint: Checkpoint) -> None:
        from llama_cpp import Llama, llama_model_get_vocab, llama_vocab_is_eog

        header = GgufHeader(checkpoint.path)
        self.context_limit = header.get(f"{header.get('general.architecture')}.context_length")
        try:
            self._llama = Llama(str(checkpoint.path), vocab_only=True, verbose=False)
        except ValueError as error:
            raise ModelError(
                f"{checkpoint.path} is cut short or damaged: llama.cpp cannot read its vocabulary; make or download it again"
            ) from error
        vocabulary = llama_model_get_vocab(self._llama.model)
        self.ends = frozenset(each for each in range(self._llama.n_vocab()) if llama_vocab_is_eog(vocabulary, each))

    def encode(self, text: str) -> list[int]:
        return list(self._llama.tokenize(text.encode(), add_bos=True, special=True))

    def encode_literal(self, text: str) -> list[int]:
        return list(self._llama.tokenize(text.encode(), add_bos=True, special=False))

    def decode(self, tokens: Sequence[int]) -> str:
        text: bytes = self._llama.detokenize(list(tokens))
        return text.decode("utf-8", "replace")
