"""The vocabularies of two checkpoints, token by token, so that ids of the one can be given to the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantbench.core.errors import ModelError
from quantbench.core.job import Checkpoint
from quantbench.models.chat import TEMPLATE_KEY, folder_template
from quantbench.models.config import CONFIG, read_config
from quantbench.models.gguf import GgufHeader

_TOKENIZER = "tokenizer.json"
_UNUSED = 5
"""GGUF's token type of padding and of pieces that no text uses (llama.cpp's LLAMA_TOKEN_TYPE_UNUSED)."""

_SPACE = "\u2581"
"""How sentencepiece writes a space; llama.cpp's converter puts a plain one into tokens that somebody added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens by id, without padding; the id that begins a text (None if unknown) and those that may end one."""

    tokens: Mapping[int, str]
    begin: int | None
    ends: frozenset[int]
    template: str
    """The chat template; empty if there is none."""


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary | None:
    """The vocabulary of a folder with a tokenizer.json, or of a GGUF file; None where there is none that can be read here.

    Raises ModelError for files that are damaged.
    """
    if checkpoint.kind == "gguf":
        return _of_header(GgufHeader(checkpoint.path))
    if checkpoint.kind == "hf" and (checkpoint.path / _TOKENIZER).is_file():
        return _of_folder(checkpoint.path)
    return None


def difference(one: Vocabulary, original: Vocabulary) -> str:
    """The first difference that makes ids of the ``original`` mean something else in ``one``; empty if there is none."""
    for number in sorted({*one.tokens, *original.tokens}):
        mine, theirs = one.tokens.get(number), original.tokens.get(number)
        if mine is None:
            return f"it has no token {number}, which is {theirs!r} in the original"
        if theirs is None:
            return f"it has token {number}, {mine!r}, which the original has not: tokens were added"
        if mine != theirs and _plain(mine) != _plain(theirs):
            return f"its token {number} is {mine!r} and the original's {theirs!r}"
    if None not in (one.begin, original.begin) and one.begin != original.begin:
        return f"its texts begin with token {one.begin} and the original's with {original.begin}"
    if one.ends and original.ends and not one.ends & original.ends:
        return f"its texts end with token {min(one.ends)} and the original's with {min(original.ends)}"
    return ""


def _plain(token: str) -> str:
    return token.replace(_SPACE, " ").strip()


def _of_header(header: GgufHeader) -> Vocabulary | None:
    texts, kinds = header.get("tokenizer.ggml.tokens"), header.get("tokenizer.ggml.token_type")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    kinds = kinds if isinstance(kinds, list) else []
    unused = {number for number, kind in enumerate(kinds) if kind == _UNUSED}
    begin = header.get("tokenizer.ggml.bos_token_id")
    ends = (header.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return Vocabulary(
        tokens={number: text for number, text in enumerate(texts) if number not in unused},
        begin=begin if isinstance(begin, int) else None,
        ends=_ids(ends),
        template=str(header.get(TEMPLATE_KEY) or ""),
    )


def _of_folder(folder: Path) -> Vocabulary:
    settings = [read_config(folder / name) for name in (CONFIG, "generation_config.json") if (folder / name).is_file()]
    return Vocabulary(
        tokens=_tokens(folder / _TOKENIZER),
        begin=next((each["bos_token_id"] for each in settings if isinstance(each.get("bos_token_id"), int)), None),
        ends=_ids(number for each in settings for number in _listed(each.get("eos_token_id"))),
        template=folder_template(folder),
    )


def _tokens(path: Path) -> dict[int, str]:
    """Those of a tokenizer.json: the model's, a table of texts or a list of pieces with their scores, and the added ones."""
    body = read_config(path)
    try:
        known = body["model"]["vocab"]
        texts = {known[text]: text for text in known} if isinstance(known, dict) else dict(enumerate(each[0] for each in known))
        found = texts | {each["id"]: each["content"] for each in body.get("added_tokens") or ()}
    except (KeyError, TypeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"{path} is not as tokenizers writes it ({reason}); download it again") from error
    if not all(isinstance(number, int) and isinstance(text, str) for number, text in found.items()):
        raise ModelError(f"{path} is not as tokenizers writes it (its tokens are no texts with numbers); download it again")
    return found


def _ids(values: Iterable[Any]) -> frozenset[int]:
    return frozenset(each for each in values if isinstance(each, int))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
