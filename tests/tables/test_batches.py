"""The table of lengths and batches, made of stored rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from quantbench.results.rows import groups
from quantbench.tables.kinds import batches

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from quantbench.core.record import Record
    from quantbench.tables.table import Table

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]

SPEEDS = {
    "tokens:512": {"torch/bf16": 50.0, "gguf/q4_k_m": 150.0},
    "tokens:512@8": {"torch/bf16": 360.0, "gguf/q4_k_m": 400.0},
    "tokens:64@32": {"torch/bf16": 1000.0, "gguf/q4_k_m": 500.0},
}


def _cells(table: Table) -> dict[str, dict[str, str]]:
    keys = [heading.key for heading in table.headings]
    return {str(row[0].value): dict(zip(keys, (cell.shown for cell in row), strict=True)) for row in table.rows}


def _records(record: Make, sets: dict[str, dict[str, float]]) -> list[Record]:
    return [record(name, prompts=prompts, decode_tps=speed) for prompts, seen in sets.items() for name, speed in seen.items()]


def test_throughput_stands_beside_the_ratio_to_what_is_not_quantized(write: Write, record: Make) -> None:
    [table] = batches.table(groups(write(_records(record, SPEEDS))))
    keys = [heading.key for heading in table.headings if heading.key.startswith("decode_tps")]
    assert keys == ["decode_tps tokens:64@32", "decode_tps tokens:512", "decode_tps tokens:512@8"]  # by length, then batch
    cells = _cells(table)
    assert [cells["gguf/q4_k_m"][key] for key in keys] == ["500 (0.500 x)", "150 (3.00 x)", "400 (1.11 x)"]
    assert [cells["torch/bf16"][key] for key in keys] == ["1000 (1.00 x)", "50 (1.00 x)", "360 (1.00 x)"]
    assert any("ratio to torch/bf16" in note for note in table.notes)


def test_without_a_model_in_16_bits_the_reference_is_compared_with(write: Write, record: Make) -> None:
    sets = {"ten": {"torch/fp32": 20.0, "gguf/q4_k_m": 50.0}, "ten@4": {"torch/fp32": 40.0, "gguf/q4_k_m": 60.0}}
    cells = _cells(batches.table(groups(write(_records(record, sets))))[0])
    assert (cells["gguf/q4_k_m"]["decode_tps ten"], cells["gguf/q4_k_m"]["decode_tps ten@4"]) == ("50 (2.50 x)", "60 (1.50 x)")


def test_what_was_not_measured_is_a_dash_with_the_reason(write: Write, record: Make) -> None:
    records = [
        *_records(record, {"tokens:512": SPEEDS["tokens:512"]}),
        record("torch/bf16", prompts="tokens:512@8", status="oom", reason="it ran out of memory"),
        record("gguf/q4_k_m", prompts="tokens:512@8", decode_tps=400.0),
    ]
    [table] = batches.table(groups(write(records)))
    cells = _cells(table)
    assert cells["torch/bf16"]["decode_tps tokens:512@8"] == "–"
    assert cells["gguf/q4_k_m"]["decode_tps tokens:512@8"] == "400"  # nothing to compare with
    assert "torch/bf16 on tokens:512@8: oom, it ran out of memory" in table.notes


def test_repeats_keep_their_ratios_and_their_baseline(write: Write, record: Make) -> None:
    """One set lost a repeat, so that its labels read otherwise: rows are told apart by variant, never by what is shown."""
    records = [
        record(name, prompts=prompts, decode_tps=speed + repeat, repeat=repeat)
        for repeat in range(3)
        for prompts, seen in SPEEDS.items()
        for name, speed in seen.items()
        if (repeat, prompts) != (2, "tokens:512@8")
    ]
    records += [
        record(name, prompts="tokens:512@8", repeat=2, status="oom", reason="no memory") for name in SPEEDS["tokens:512@8"]
    ]
    [table] = batches.table(groups(write(records)))
    assert len(table.rows) == 2
    (gguf,) = (cells for label, cells in _cells(table).items() if label.startswith("gguf/q4_k_m (median of"))
    assert (gguf["decode_tps tokens:512"], gguf["decode_tps tokens:512@8"]) == ("151 (2.96 x)", "400 (1.11 x)")
    assert any("ratio to torch/bf16" in note for note in table.notes)


@pytest.mark.parametrize("sets", [["ten"], ["ten", "two"], ["tokens:512"]])
def test_sets_of_one_length_and_batch_have_no_table(sets: list[str], write: Write, record: Make) -> None:
    assert batches.table(groups(write([record("torch/bf16", prompts=name) for name in sets]))) == []
