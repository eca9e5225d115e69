"""The tokenizer of a checkpoint folder, as transformers loads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantbench.core.errors import ModelError
from quantbench.core.job import Checkpoint
from quantbench.models.chat import Template, folder_template
from quantbench.models.config import read_config

_COMMON = "transformers.tokenization_utils"
"""Modules of what decodes for all tokenizers with a backend."""

_TURN_ENDS = frozenset(
    ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]")
)
"""Special tokens that end a turn or a message, by the names that llama.cpp knows them by (src/llama-vocab.cpp).

A folder's configuration often names the end of the text alone.
"""


class FolderTokenizer:
    """A Tokenizer by AutoTokenizer."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """ModelError if it has no tokenizer that can be read."""
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
        self.bos = str(self._tokenizer.bos_token or "")
        self._checkpoint = checkpoint

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, with BOS in front where the model was trained with one."""
        return self._encode(text)

    def encode_literal(self, text: str) -> list[int]:
        """The same for a running text, in which nothing is a special token."""
        return self._encode(text, split_special_tokens=True, verbose=False)  # a text is longer than any context

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of a text that the template made, as transformers' ``apply_chat_template`` has them."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    @property
    def template(self) -> Template:
        """The chat template, with the special tokens that it may write."""
        special = {name: text for name, text in self._tokenizer.special_tokens_map.items() if isinstance(text, str)}
        return Template(source=folder_template(self._checkpoint.path), special=special, owner=self._checkpoint.name)

    def _encode(self, text: str, **how: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=True, **how)
        bos = self._tokenizer.bos_token_id
        if getattr(self._tokenizer, "add_bos_token", False) and bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def backend(self) -> str | None:
        """The serialized backend that decodes; None if the tokenizer's class adds something of its own."""
        found = getattr(self._tokenizer, "backend_tokenizer", None)
        own = (getattr(type(self._tokenizer), name, None) for name in ("decode", "_decode"))
        if found is None or not all(getattr(each, "__module__", "").startswith(_COMMON) for each in own):
            return None
        return str(found.to_str())


def _listed(ends: int | list[int] | None) -> list[int]:
    """End-of-sequence ids as a list; configurations have one, several or none."""
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
