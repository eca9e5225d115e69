"""JSON Lines: every column, read back equal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from quantbench import load
from quantbench.export import export
from quantbench.results.schema import TABLES, table_columns

if TYPE_CHECKING:
    import pandas as pd


def _read(frame: pd.DataFrame, table: str) -> list[dict[str, Any]]:
    text = "".join(export("jsonl", frame, table))
    assert text.endswith("\n")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]  # splits at U+2028 as well


@pytest.mark.parametrize("table", TABLES)
def test_every_column_of_every_row(results: str, table: str) -> None:
    frame = load(results, table)
    rows = _read(frame, table)
    assert len(rows) == len(frame) > 0
    assert all(list(row) == [column.name for column in table_columns(table)] for row in rows)


def test_values_come_back(frame: pd.DataFrame) -> None:
    rows = {(row["scenario_id"], row["repeat"]): row for row in _read(frame, "scenarios")}
    row = rows["canary/bitsandbytes-nf4/ten", 0]
    assert (row["decode_tps"], row["weight_bytes"], row["control"]) == (100.5, 2**40 + 1, False)
    assert row["started_at"] == "2026-01-02T03:04:05.000006+00:00"
    assert [row[name] for name in ("ppl", "e2e_s", "load_s", "reason")] == [None] * 4
    oom = rows["canary/torch-fp16/ten", 0]
    assert (oom["status"], oom["reason"], oom["decode_tps"]) == ("oom", "=cmd|'/c calc'!A1", None)


def test_samples_are_exact(results: str) -> None:
    assert [row["value_s"] for row in _read(load(results, "samples"), "samples")] == [0 / 7, 1 / 7, 2 / 7]


def test_texts_and_lists_come_back(results: str, hostile: tuple[str, ...]) -> None:
    rows = _read(load(results, "outputs"), "outputs")
    assert tuple(row["variant_text"] for row in rows) == hostile
    assert [rows[0][name] for name in ("variant_tokens", "kld", "first_divergence")] == [None] * 3
    assert (rows[1]["variant_tokens"], rows[1]["first_divergence"]) == ([4, 5], 0)
    near, infinite = rows[1]["kld"]
    assert math.isclose(near, 0.1, rel_tol=1e-7)
    assert infinite is None


def test_rows_are_written_as_they_come(frame: pd.DataFrame, store: Callable[..., str]) -> None:
    assert len(list(export("jsonl", frame))) == len(frame)
