"""The weights of dummies: cut from a pool of seeded values, which is drawn only once, however large the model is."""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

SEED = 0
SPREAD = 0.02
"""Standard deviation of the weights, the usual initializer_range: it keeps activations well within the range of float16."""


def cut(name: str, count: int, size: int) -> Iterator[slice]:
    """Slices of a pool of ``size`` values that make up the ``count`` values of a tensor, starting at a hash of its name.

    They wrap around as often as needed. If ``size`` is prime, no two rows of a matrix start at the same value.
    """
    start = crc32(name.encode()) % size
    while count:
        stop = min(start + count, size)
        yield slice(start, stop)
        start, count = 0, count - (stop - start)
