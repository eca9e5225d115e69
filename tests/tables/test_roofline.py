"""The roofline table, made of stored rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantbench import tables
from quantbench.results.rows import groups
from quantbench.tables.kinds import roofline
from quantbench.tables.render import as_text

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from quantbench.core.record import Missing, Record

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]


def test_each_variant_shows_what_it_reads_and_what_it_costs(
    write: Write, record: Make, missing: Callable[[str], Missing]
) -> None:
    seen = {"bytes_per_token": 21_100_000, "memory_bandwidth_bps": 12.4e9, "mbu": 0.4567}
    joules = {"energy_per_token_j": 0.0321, "energy_window_s": 5.1, "energy_source": "RAPL, CPU packages"}
    frame = write(
        [
            record("torch/fp32", facts={"kernel": "aten-float32", "device": "cpu"}, **seen, **joules),
            record("gguf/q4_k_m", facts={"kernel": "llama.cpp-cpu"}, mbu=1.25, energy_per_token_j=missing("no counter")),
            record("gguf/q8_0", status="error", reason="it fell over"),
        ]
    )
    [table] = roofline.table(groups(frame))
    keys = [heading.key for heading in table.headings]
    shown = {row[0].value: dict(zip(keys, (cell.shown for cell in row), strict=True)) for row in table.rows}
    assert shown["torch/fp32"] | {
        "bytes_per_token": "21.1 MB", "memory_bandwidth_bps": "12.4 GB/s", "mbu": "45.7%", "energy_per_token_j": "0.0321",
        "kernel": "aten-float32", "device_found": "cpu", "energy_source": "RAPL, CPU packages",
    } == shown["torch/fp32"]  # fmt: skip
    assert (shown["gguf/q4_k_m"]["mbu"], shown["gguf/q4_k_m"]["device_found"]) == ("125.0%", "–")
    assert shown["gguf/q8_0"]["status"] == "error"
    assert "no Energy, J/token: no counter" in table.notes
    assert "Memory roofline and energy" in as_text([table], 200)


def test_a_run_without_such_figures_has_no_such_table(write: Write, record: Make) -> None:
    frame = write([record("torch/fp32"), record("gguf/q8_0")])
    assert roofline.table(groups(frame)) == []
    assert "roofline" not in {made.name for made in tables.build("all", frame)}
    assert "roofline" in {kind.name for kind in tables.KINDS}
