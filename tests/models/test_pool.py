"""The pool that a dummy's weights are cut from."""

from __future__ import annotations

from zlib import crc32

import pytest

from quantbench.models.pool import cut


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 30])
def test_a_tensor_begins_where_its_name_says_and_goes_around_the_pool(count: int) -> None:
    pool = list(range(7))
    start = crc32(b"a.weight") % 7
    found = [value for piece in cut("a.weight", count, 7) for value in pool[piece]]
    assert found == [(start + index) % 7 for index in range(count)]


def test_another_name_begins_elsewhere() -> None:
    assert len({next(cut(f"layers.{number}.weight", 1, 2**20 - 3)).start for number in range(100)}) == 100
