"""The weights of dummies: cut from a pool of seeded values, so that a pool is drawn once, however large the model is."""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

SEED = 0
SPREAD = 0.02
"""Standard deviation of weights, the usual initializer_range: activations then stay far from the limits of float16."""


def cut(name: str, count: int, size: int) -> Iterator[slice]:
    """Where in a pool of ``size`` the ``count`` values of the tensor of that name are: from a place that follows from its name.

    It goes around the pool as often as it must. Where ``size`` is a prime, no two rows of a matrix begin at the same value.
    """
    start = crc32(name.encode()) % size
    while count:
        stop = min(start + count, size)
        yield slice(start, stop)
        start, count = 0, count - (stop - start)
