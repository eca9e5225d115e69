"""A running text cut as llama-perplexity cuts it, against a plain transcription of its loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.errors import ModelError
from quantbench.core.scenario import Conditions
from quantbench.measuring.passes.text import CHUNK_TOKENS, chunk_tokens, read_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

BOS = 1000


@dataclass
class Letters:
    """The n-th id is n, after BOS where there is one."""

    bos: bool
    context_limit: int | None = None
    ends: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        return [BOS] * self.bos + list(range(len(text)))

    def encode_literal(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return "." * len(tokens)


def _scored_by_llama_perplexity(ids: list[int], n_ctx: int, *, bos: bool, n_chunks: int) -> list[tuple[list[int], int]]:
    """Of each scored position the ids before it and its target, as the loops of perplexity.cpp have them."""
    first = n_ctx // 2
    most = len(ids) // n_ctx
    found = []
    for chunk in range(min(n_chunks or most, most)):
        tokens = ids[chunk * n_ctx : (chunk + 1) * n_ctx]
        fed = [BOS, *tokens[1:]] if bos else tokens
        found += [(fed[: first + i + 1], tokens[first + i + 1]) for i in range(n_ctx - 1 - first)]
    return found


@given(length=st.integers(0, 90), size=st.integers(3, 17), bos=st.booleans(), most=st.integers(0, 5))
def test_chunks_are_llama_perplexitys(length: int, size: int, bos: bool, most: int) -> None:
    """BOS replaces the first id and shifts none; what is left over is not scored; a target comes once."""
    tokenizer = Letters(bos)
    ids = tokenizer.encode("x" * length)
    conditions = Conditions(context=size, chunks=most)
    if len(ids) < 2 * size:
        with pytest.raises(ModelError):
            read_chunks(tokenizer, "x" * length, conditions)
        return
    chunks = read_chunks(tokenizer, "x" * length, conditions)
    ours = [([*read, *rest[:index]], target) for read, rest in chunks for index, target in enumerate(rest)]
    assert ours == _scored_by_llama_perplexity(ids, size, bos=bos, n_chunks=most)


def test_the_second_half_is_scored_after_the_first_with_one_more() -> None:
    """Of 512 ids 257 are only read and 255 are targets."""
    (read, rest), *_ = read_chunks(Letters(bos=True), "x" * 1200, Conditions())
    assert (len(read), len(rest)) == (257, 255)
    assert read[:3] == (BOS, 0, 1)
    assert rest == tuple(range(256, 511))


def test_a_model_without_bos_keeps_each_chunks_first_id() -> None:
    chunks = read_chunks(Letters(bos=False), "x" * 1200, Conditions())
    assert [read[0] for read, _ in chunks] == [0, 512]


@pytest.mark.parametrize(
    ("context", "limit", "size"),
    [(0, None, CHUNK_TOKENS), (0, 128, 128), (0, 4096, CHUNK_TOKENS), (256, 4096, 256), (1024, None, 1024)],
)
def test_a_chunk_is_as_long_as_asked_or_as_the_tool_has_it(context: int, limit: int | None, size: int) -> None:
    assert chunk_tokens(Conditions(context=context), limit) == size
    (read, rest), *_ = read_chunks(Letters(bos=True, context_limit=limit), "x" * 5000, Conditions(context=context))
    assert len(read) + len(rest) == size


def test_a_short_text_names_its_length_and_the_mend() -> None:
    with pytest.raises(ModelError) as caught:
        read_chunks(Letters(bos=True), "x" * 1000, Conditions())
    assert str(caught.value) == (
        "the text has 1001 tokens and scoring needs two chunks of 512; give a longer text or a shorter --context"
    )


def test_chunks_limits_how_many_are_scored() -> None:
    text = "x" * 5000
    everything = read_chunks(Letters(bos=True), text, Conditions())
    assert len(everything) == 5001 // 512
    assert read_chunks(Letters(bos=True), text, Conditions(chunks=3)) == everything[:3]
    assert read_chunks(Letters(bos=True), text, Conditions(chunks=99)) == everything


def test_a_chunk_without_a_second_half_is_refused() -> None:
    with pytest.raises(ModelError, match="a chunk of 2 tokens has nothing to score; ask for a --context of at least 3"):
        read_chunks(Letters(bos=True), "x" * 100, Conditions(context=2))


def test_an_end_of_sequence_after_the_text_is_no_bos() -> None:
    class Ending(Letters):
        def encode(self, text: str) -> list[int]:
            return [*range(len(text)), BOS]

    (read, _), *_ = read_chunks(Ending(bos=False), "x" * 100, Conditions(context=8))
    assert read == (0, 1, 2, 3, 4)
