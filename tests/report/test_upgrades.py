"""What upgrades cost, as the page says it: in words and verdicts, never as bare differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quantbench.report import page
from quantbench.report.sections.upgrades import shown_upgrades

if TYPE_CHECKING:
    from pathlib import Path

    from quantbench.report import Results

NAMES = ("torch/fp32", "gguf/q8_0", "gguf/q4_k_m", "gguf/q2_k")


def test_an_upgrade_that_changed_one_kld(write: Any, record: Callable[..., Any]) -> None:
    write([record(name) for name in NAMES], torch="2.13.0")
    after = [record(name, **({"kld_mean": 0.084} if name == "gguf/q4_k_m" else {})) for name in NAMES]
    (shown,) = shown_upgrades(write(after, run_id="run-2", day=2, torch="2.14.0"))
    assert shown.title == "torch 2.13.0 → 2.14.0"
    assert shown.verdict == "Decode speed: not enough data; KLD: canary/gguf-q4_k_m/ten +100.0% (worse), 3 unchanged"
    assert shown.about == "cpu: Example CPU, 2 threads; before: run run-1; after: run run-2"
    (sheet,) = shown.sheets
    assert [head.title for head in sheet.lower] == ["Variant", "Decode speed", "KLD"]
    cells = {row[0].text: [(field.text, field.looks) for field in row[1:]] for row in sheet.rows}
    assert cells["gguf/q4_k_m"] == [("not enough data", "number missing"), ("+100.0% (worse)", "number worse")]
    assert cells["gguf/q8_0"][1] == ("unchanged", "number missing")
    (note,) = shown.notes
    assert note.startswith("canary/torch-fp32/ten Decode speed, canary/gguf-q8_0/ten Decode speed")
    assert " and 1 more: the rule needs 5 processes per side" in note


def test_what_ended_otherwise_or_by_another_kernel_is_said(write: Any, record: Callable[..., Any]) -> None:
    from dataclasses import replace

    from quantbench.core.record import Status

    write([record("torch/fp32"), record("gguf/q8_0")], torch="2.13.0")
    broken = replace(record("gguf/q8_0"), status=Status.CRASHED, reason="signal 11", values={}, samples=(), outputs=())
    other = replace(record("torch/fp32"), facts={**record("torch/fp32").facts, "kernel": "faster"})
    (shown,) = shown_upgrades(write([other, broken], run_id="run-2", day=2, torch="2.14.0"))
    assert shown.verdict == "canary/gguf-q8_0/ten was ok, now crashed, signal 11"
    assert shown.sheets == ()
    assert shown.notes == ("canary/torch-fp32/ten: run by another kernel: torch-kernel became faster",)


def test_without_an_upgrade_the_page_has_none(write: Any, record: Callable[..., Any], everything_page: Path) -> None:
    write([record("torch/fp32")])
    results: Results = write([record("torch/fp32")], run_id="run-2", day=2)
    assert shown_upgrades(results) == []
    assert 'class="upgrade"' not in page(results)
    assert everything_page.read_text(encoding="utf-8").count('class="upgrade"') == 1
