"""The memory table: weights beside the footprint, the reason for their difference, and the process's peaks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from quantbench import tables
from quantbench.methods import METHODS
from quantbench.results.rows import groups
from quantbench.tables.kinds import memory
from quantbench.tables.render import as_text, render

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from quantbench.core.record import Missing, Record
    from quantbench.tables.table import Cell, Table

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]

PACKED = "neither parameters nor buffers: packed weights"
DENSE = "tensor subclasses report the size of the dense tensors that they stand for"


@pytest.fixture
def row(record: Make) -> Make:
    """A row whose process held 300 MB before the model was opened, 330 MB while it was, and 325 MB while answering."""

    def make(name: str, weights: int, footprint: Any, note: Any, **changes: Any) -> Record:
        values = {
            "weight_bytes": weights, "weight_bytes_running": weights + 1, "weight_kinds": json.dumps({"parameters": weights}),
            "footprint_bytes": footprint, "footprint_note": note, "artifact_bytes": 11_000_000,
            "peak_rss_bytes": 325_000_000, "peak_rss_growth_bytes": 25_000_000, "load_peak_rss_bytes": 330_000_000,
            "rss_anon_bytes": 290_000_000, "rss_file_bytes": 35_000_000,
        }  # fmt: skip
        return record(name, **{**values, **changes})

    return make


@pytest.fixture
def rows(row: Make, missing: Callable[[str], Missing]) -> list[Record]:
    none = missing("this runtime has no get_memory_footprint()")
    return [
        row("torch/fp32", 23_000_000, 23_000_000, "equal"),
        row("torch-dynamic/int8", 7_350_000, 2_110_000, PACKED),
        row("torchao/int8-wo", 6_900_000, 11_540_000, DENSE),
        row("torchao/intx4-wo", 7_300_000, 11_540_000, DENSE),
        row("gguf/q8_0", 6_100_000, none, none),
    ]


def _cells(table: Table, name: str) -> dict[str, Cell]:
    keys = [heading.key for heading in table.headings]
    return dict(zip(keys, next(row for row in table.rows if row[0].value == name), strict=True))


def test_the_footprint_stands_beside_the_weights_with_the_reason(write: Write, rows: list[Record]) -> None:
    [table] = memory.table(groups(write(rows)))
    shown = {name: _cells(table, name)["footprint_difference_bytes"].shown for name in (row[0].value for row in table.rows)}
    assert shown == {
        "torch/fp32": "0 B",
        "torch-dynamic/int8": "-5.24 MB¹",
        "torchao/int8-wo": "+4.64 MB²",
        "torchao/intx4-wo": "+4.24 MB²",
        "gguf/q8_0": "–",
    }
    reasons = [note for note in table.notes if note[0] in "¹²³"]
    assert reasons == [f"¹ {PACKED}", f"² {DENSE}"]
    assert "no Footprint: this runtime has no get_memory_footprint()" in table.notes


def test_machines_get_the_figures_the_reason_and_the_parts(write: Write, rows: list[Record]) -> None:
    cells = _cells(memory.table(groups(write(rows)))[0], "torch-dynamic/int8")
    assert cells["footprint_difference_bytes"].value == 2_110_000 - 7_350_000
    assert cells["footprint_note"].value == PACKED
    assert json.loads(str(cells["weight_kinds"].value)) == {"parameters": 7_350_000}
    assert (cells["weight_bytes_running"].value, cells["artifact_bytes"].value) == (7_350_001, 11_000_000)


def test_growth_is_over_what_was_resident_before(write: Write, rows: list[Record]) -> None:
    cells = _cells(memory.table(groups(write(rows)))[0], "torch/fp32")
    assert cells["peak_rss_growth_bytes"].shown == "25 MB"
    assert cells["load_growth_bytes"].value == 30_000_000
    assert (cells["rss_anon_bytes"].shown, cells["rss_file_bytes"].shown) == ("290 MB", "35 MB")


def test_a_devices_peaks_are_columns_where_there_are_some(write: Write, row: Make, rows: list[Record]) -> None:
    assert "On device" not in as_text(memory.table(groups(write(rows))), 250)
    on_gpu = row("torch/bf16", 1, 1, "equal", peak_device_allocated_bytes=12_000_000, peak_device_reserved_bytes=20_000_000)
    [table] = memory.table(groups(write([on_gpu], run_id="run-2", day=2).query("run_id == 'run-2'")))
    cells = _cells(table, "torch/bf16")
    assert (cells["peak_device_allocated_bytes"].shown, cells["peak_device_reserved_bytes"].shown) == ("12 MB", "20 MB")


def test_memory_of_a_device_alone_makes_a_table(write: Write, row: Make, missing: Callable[[str], Missing]) -> None:
    """As in a container whose kernel does not report the host's."""
    none = missing("this system lacks VmHWM")
    names = ("peak_rss_bytes", "peak_rss_growth_bytes", "load_peak_rss_bytes", "rss_anon_bytes", "rss_file_bytes")
    found = write([row("torch/bf16", 1, 1, "equal", peak_device_used_bytes=9, **dict.fromkeys(names, none))])
    [table] = memory.table(groups(found))
    cells = _cells(table, "torch/bf16")
    assert [cells[name].shown for name in (*names[1:2], "load_growth_bytes", *names[3:])] == ["–"] * 4
    assert any("this system lacks VmHWM" in note for note in table.notes)


def test_a_failure_is_a_line_with_its_reason(write: Write, row: Make, rows: list[Record]) -> None:
    failed = row("torch/bf16", 1, 1, "equal", status="oom", reason="killed")
    [table] = memory.table(groups(write([*rows, failed])))
    assert _cells(table, "torch/bf16")["status"].shown == "oom"
    assert "torch/bf16: oom, killed" in table.notes


def test_where_no_memory_was_measured_there_is_no_table(write: Write, record: Make) -> None:
    """A server's memory is in another process."""
    assert memory.table(groups(write([record("server/as-served")]))) == []


def test_more_reasons_than_signs_are_numbered(write: Write, row: Make) -> None:
    names = [each.name for each in METHODS["gguf"].precisions[:10]]
    [table] = memory.table(groups(write([row(f"gguf/{name}", 10, 9, f"for the sake of {name}") for name in names])))
    signs = [row[4].shown.removeprefix("-1 B") for row in table.rows]
    assert signs == [*"¹²³⁴⁵⁶⁷⁸⁹", "(10)"]
    assert [note for note in table.notes if "for the sake" in note] == [
        f"{sign} for the sake of {row[0].value.partition('/')[2]}" for sign, row in zip(signs, table.rows, strict=True)
    ]


def test_it_is_one_of_all_kinds(write: Write, rows: list[Record]) -> None:
    assert "memory" in [table.name for table in tables.build(tables.ALL, write(rows))]


@pytest.mark.parametrize("form", ["text", "md", "csv", "json"])
def test_every_format_renders_it(form: str, write: Write, rows: list[Record]) -> None:
    text = render(memory.table(groups(write(rows))), form)
    assert "torch-dynamic/int8" in text
    assert PACKED in text
