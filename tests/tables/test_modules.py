"""The table of dynamic quantization, and what the other tables make of a module's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from quantbench import tables
from quantbench.advice.decision import decide
from quantbench.results.rows import groups
from quantbench.tables.kinds import gguf, modules, precision
from quantbench.tables.kinds.measured import overview
from quantbench.tables.render import as_text, render
from quantbench.tables.summary import run_summary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd

    from quantbench.core.record import Missing, Record
    from quantbench.tables.table import Cell, Table

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]

TOKENS = (
    "decode_tps",
    "decode_tps_low",
    "decode_tps_high",
    "decode_ratio",
    "ttft_s",
    "kld_mean",
    "kld_mean_se",
    "top1_agreement",
)
TUTORIAL = {"torch/fp32": 28149, "torch-dynamic/int8": 12469}
"""What the tutorial's snippet wrote."""


@pytest.fixture
def module_row(record: Make, missing: Callable[[str], Missing]) -> Make:
    """A row of the module ``lstm``."""

    def make(name: str, **changes: Any) -> Record:
        values = {
            "state_dict_bytes": TUTORIAL.get(name, 20_000), "call_s": 1.25e-4, "call_mad_s": 2e-6, "call_p90_s": 1.4e-4,
            "call_ratio": 1.0, "call_ratio_low": 0.9, "call_ratio_high": 1.1,
            "output_cosine": 1.0, "output_max_abs_error": 0.0,
        }  # fmt: skip
        none = dict.fromkeys(TOKENS, missing("no tokens"))
        return record(name, **{"model": "lstm", "prompts": "seeded", **none, **values, **changes})

    return make


@pytest.fixture
def rows(module_row: Make) -> list[Record]:
    """A reference, its control, a half and the quantized module."""
    int8 = {"call_ratio": 0.5, "call_ratio_low": 0.4, "call_ratio_high": 0.6, "output_cosine": 0.9999954}
    return [
        module_row("torch/fp32"), module_row("torch/fp32", control=True), module_row("torch/fp16"),
        module_row("torch-dynamic/int8", output_max_abs_error=0.00216, call_s=2.5e-4, **int8),
    ]  # fmt: skip


def _cells(table: Table, name: str) -> dict[str, Cell]:
    keys = [heading.key for heading in table.headings]
    return dict(zip(keys, next(row for row in table.rows if row[0].value == name), strict=True))


def test_one_line_per_variant_with_no_empty_cell(write: Write, rows: list[Record]) -> None:
    [table] = modules.table(groups(write(rows)))
    assert [row[0].value for row in table.rows] == ["torch/fp32", "torch/fp32 (control)", "torch/fp16", "torch-dynamic/int8"]
    shown = [text for _, texts in table.shown_columns() for text in texts]
    assert "–" not in shown
    assert table.title == "Dynamic quantization: lstm, prompts seeded"


def test_size_and_reduction_are_what_the_tutorial_prints(write: Write, rows: list[Record]) -> None:
    [table] = modules.table(groups(write(rows)))
    full, packed = (_cells(table, name) for name in TUTORIAL)
    sizes = [count / 1024 for count in TUTORIAL.values()]
    assert [cells["state_dict_bytes"].shown for cells in (full, packed)] == [f"{size:.2f}" for size in sizes]
    assert packed["state_dict_reduction"].shown == f"{sizes[0] / sizes[1]:.2f}x smaller"
    assert packed["state_dict_reduction"].value == pytest.approx(28149 / 12469)
    assert full["state_dict_reduction"].shown == "1.00x"
    assert packed["state_dict_bytes"].value == 12469


def test_time_speed_and_distance(write: Write, rows: list[Record]) -> None:
    cells = _cells(modules.table(groups(write(rows)))[0], "torch-dynamic/int8")
    assert cells["call_s"].shown == "250 us (MAD 2 us)"
    assert cells["call_speed_ratio"].shown == "0.500 (0.400 to 0.600)"
    assert cells["output_cosine"].shown == "0.999995"
    assert cells["output_max_abs_error"].shown == "0.0022"


def test_without_alternating_rounds_speed_is_between_processes_and_marked(
    write: Write, module_row: Make, missing: Callable[[str], Missing]
) -> None:
    none = dict.fromkeys(("call_ratio", "call_ratio_low", "call_ratio_high"), missing("no anchor"))
    frame = write([module_row("torch/fp32"), module_row("torch-dynamic/int8", call_s=5e-4, **none)])
    [table] = modules.table(groups(frame))
    assert _cells(table, "torch-dynamic/int8")["call_speed_ratio"].shown == "0.250†"
    assert any(note.startswith("† between processes") for note in table.notes)


def test_without_the_reference_there_is_no_reduction(write: Write, module_row: Make) -> None:
    [table] = modules.table(groups(write([module_row("torch-dynamic/int8")])))
    assert _cells(table, "torch-dynamic/int8")["state_dict_reduction"].value is None


def test_a_language_model_has_its_row_where_both_sizes_are_known(write: Write, record: Make) -> None:
    sizes = {"torch/fp32": 23_091_881, "torch-dynamic/int8": 7_409_057}
    frame = write([*(record(name, state_dict_bytes=size) for name, size in sizes.items()), record("gguf/q4_k_m")])
    [table] = modules.table(groups(frame))
    assert [row[0].value for row in table.rows] == ["torch/fp32", "torch-dynamic/int8"]
    cells = _cells(table, "torch-dynamic/int8")
    assert cells["state_dict_reduction"].shown == "3.12x smaller"
    assert cells["kld_mean"].value == 0.01
    assert "call_s" not in cells
    assert "–" not in [text for _, texts in table.shown_columns() for text in texts]


@pytest.mark.parametrize("names", [("torch/fp32", "gguf/q8_0"), ("torch-dynamic/int8",), ("torch/fp32", "torch-dynamic/int8")])
def test_a_language_model_without_them_has_no_such_table(names: tuple[str, ...], write: Write, record: Make) -> None:
    assert modules.table(groups(write([record(name) for name in names]))) == []


def test_a_failure_is_a_line_with_its_reason(write: Write, module_row: Make) -> None:
    failed = module_row("torch-dynamic/int8", status="skipped", reason="CPU only")
    [table] = modules.table(groups(write([module_row("torch/fp32"), failed])))
    assert _cells(table, "torch-dynamic/int8")["status"].shown == "skipped"
    assert "torch-dynamic/int8: skipped, CPU only" in table.notes


def test_no_decision_is_made_of_a_module(write: Write, rows: list[Record], record: Make, tmp_path: Path) -> None:
    [choice] = decide(write([*rows, record("gguf/q4_k_m")]))
    assert (choice.model, choice.prompts) == ("canary", "ten")
    lines = run_summary(str(tmp_path / "results"), "run-1", 140)
    assert lines[0].startswith("Ship gguf/q4_k_m: ")
    assert {"Measured: lstm, prompts seeded", "Measured: canary, prompts ten"} <= set(lines)


def test_the_overview_of_a_module_shows_its_own_columns(write: Write, rows: list[Record]) -> None:
    [table] = overview(groups(write(rows)))
    titles = [heading.title for heading, _ in table.shown_columns()]
    assert titles == [
        "Variant", "Weights", "Bits/weight", "Call", "Speed, x torch/fp32", "Cosine", "Largest error", "Status",
    ]  # fmt: skip
    assert "–" not in as_text([table], 200)


def test_the_precision_and_gguf_tables_leave_modules_out(write: Write, rows: list[Record]) -> None:
    frame = write(rows)
    assert precision.table(groups(frame)) == gguf.table(groups(frame)) == []
    assert "modules" in {table.name for table in tables.build(tables.ALL, frame)}


@pytest.mark.parametrize("form", ["text", "md", "csv", "json"])
def test_every_format_renders_it(form: str, write: Write, rows: list[Record]) -> None:
    assert "torch-dynamic/int8" in render(modules.table(groups(write(rows))), form)
