"""The noise table: the spread of a variant between fresh processes."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean, stdev
from typing import TYPE_CHECKING

import pytest

from quantbench.results.rows import groups
from quantbench.tables.kinds import noise

if TYPE_CHECKING:
    import pandas as pd

    from quantbench.core.record import Record
    from quantbench.tables.table import Table

RATES = (100.0, 104.0, 92.0)
Write = Callable[..., "pd.DataFrame"]
Make = Callable[..., "Record"]


def column(table: Table, key: str) -> list[object]:
    (index,) = (index for index, heading in enumerate(table.headings) if heading.key == key)
    return [row[index].value for row in table.rows]


def test_the_spread_is_the_standard_deviation_over_the_mean_of_the_processes(write: Write, record: Make) -> None:
    repeated = [record(repeat=repeat, decode_tps=rate, itl_ratio=1.3) for repeat, rate in enumerate(RATES)]
    control = [record("torch/fp32", control=True, repeat=repeat, decode_tps=50.0 + repeat) for repeat in (0, 1)]
    [table] = noise.table(groups(write([*repeated, *control, record("gguf/q8_0")])))

    assert column(table, "variant") == ["torch/fp32 (control)", "gguf/q4_k_m"]
    assert column(table, "processes") == [2, 3]
    assert column(table, "decode_tps_spread")[1] == pytest.approx(stdev(RATES) / mean(RATES))
    assert column(table, "itl_ratio_spread") == [None, 0.0]
    assert "1.13 x" in next(row for row in table.rows if row[0].value == "gguf/q4_k_m")[2].shown


def test_failed_processes_do_not_count_and_one_process_has_no_spread(write: Write, record: Make) -> None:
    rows = [record(), record(repeat=1, status="oom", reason="memory ran out"), record("gguf/q8_0", prompts="two")]
    assert noise.table(groups(write(rows))) == []
