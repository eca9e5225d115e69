"""A running text as llama-perplexity reads it: chunks as long as the context, with the second half of each scored."""

from __future__ import annotations

from quantbench.core.errors import ModelError
from quantbench.core.scenario import Conditions
from quantbench.models.tokenizer import Tokenizer

CHUNK_TOKENS = 512
"""llama-perplexity's own default."""

_LEAST_CHUNKS = 2
_LEAST_TOKENS = 3
"""A shorter chunk would have nothing to score in its second half."""

Chunks = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""For each chunk, the ids that are only read, and those that are scored after them."""


def chunk_tokens(conditions: Conditions, limit: int | None) -> int:
    """Tokens of a chunk: the requested context, else 512 or the model's limit, whichever is less."""
    return conditions.context or min(CHUNK_TOKENS, limit or CHUNK_TOKENS)


def read_chunks(tokenizer: Tokenizer, text: str, conditions: Conditions) -> Chunks:
    """The text's ids cut into chunks of equal length; a shorter rest is not scored, as in llama-perplexity.

    Where the model was trained with BOS, it replaces the first id of each chunk. Positions n/2 to n - 2 of a chunk of n are
    scored: those predict ids n/2 + 1 to n - 1. ModelError when the text is shorter than two chunks, or a chunk too short.
    """
    size = chunk_tokens(conditions, tokenizer.context_limit)
    if size < _LEAST_TOKENS:
        raise ModelError(f"a chunk of {size} tokens has nothing to score; ask for a --context of at least {_LEAST_TOKENS}")
    ids = tokenizer.encode_literal(text)
    first = tokenizer.encode("")[:1]
    head = first if ids[:1] == first else []  # encode("") may also give EOS: only an id that begins the text too is BOS
    count = len(ids) // size
    if count < _LEAST_CHUNKS:
        raise ModelError(
            f"the text has {len(ids)} tokens and scoring needs two chunks of {size}; give a longer text or a shorter --context"
        )
    chunks = [[*(head or ids[start : start + 1]), *ids[start + 1 : start + size]] for start in range(0, count * size, size)]
    split = size // 2 + 1
    kept = chunks[: conditions.chunks or count]
    return tuple((tuple(chunk[:split]), tuple(chunk[split:])) for chunk in kept)
