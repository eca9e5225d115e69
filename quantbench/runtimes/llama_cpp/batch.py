"""Batches of several sequences for llama.cpp: equally many tokens of each, at one position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from quantbench.core.errors import ModelError
from quantbench.runtimes import says_out_of_memory


def decode_error(lib: Any, full: str) -> ModelError | MemoryError:
    """The error behind a failed ``llama_decode``: out of memory if llama.cpp says so, else ``full``."""
    said = next(filter(says_out_of_memory, reversed(lib.quantbench_errors)), "")
    return MemoryError(f"llama.cpp ran out of memory while it computed ({said})") if said else ModelError(full)


@contextmanager
def open_batch(lib: Any, tokens: int, sequences: int) -> Iterator[SequenceBatch]:
    """A batch with room for at most ``tokens`` tokens of ``sequences`` sequences in all."""
    batch = lib.llama_batch_init(tokens, 0, 1)
    try:
        yield SequenceBatch(lib, batch, tokens, sequences)
    finally:
        lib.llama_batch_free(batch)


class SequenceBatch:
    """llama.cpp's batch, filled row by row: which sequence a token belongs to is written only when the rows' length changes."""

    def __init__(self, lib: Any, batch: Any, tokens: int, sequences: int) -> None:
        """``batch`` has room for ``tokens`` tokens."""
        import numpy as np

        self._lib = lib
        self._batch = batch
        self._sequences = sequences
        self._length = 0
        self._tokens = np.ctypeslib.as_array(batch.token, shape=(tokens,))
        self._positions = np.ctypeslib.as_array(batch.pos, shape=(tokens,))
        self._wanted = np.ctypeslib.as_array(batch.logits, shape=(tokens,))

    def decode(self, context: Any, rows: Sequence[Sequence[int]], start: int, *, last: bool) -> None:
        """Feed a row of ids for each sequence at position ``start``; where ``last``, with logits of each row's last id.

        Raises ModelError when the context is full.
        """
        import numpy as np

        length = len(rows[0])
        count = length * self._sequences
        if length != self._length:
            self._lay_out(length)
        self._tokens[:count] = np.asarray(rows, dtype=np.int32).ravel()
        self._positions[:count] = np.tile(np.arange(start, start + length, dtype=np.int32), self._sequences)
        self._wanted[:count] = 0
        if last:
            self._wanted[length - 1 : count : length] = 1
        if self._lib.llama_decode(context, self._batch):
            full = f"llama.cpp could not read {self._sequences} sequences to position {start + length}; ask for a smaller batch"
            raise decode_error(self._lib, full)

    def sample(self, sampler: Any, context: Any) -> list[int]:
        """The next id of each sequence, after the last rows."""
        ends = range(self._length - 1, self._length * self._sequences, self._length)
        return [self._lib.llama_sampler_sample(sampler, context, index) for index in ends]

    def _lay_out(self, length: int) -> None:
        self._length = length
        self._batch.n_tokens = length * self._sequences
        for index in range(length * self._sequences):
            self._batch.n_seq_id[index] = 1
            self._batch.seq_id[index][0] = index // length
