"""What a run was asked for and has no row of: lost, unless it was left out of the selection."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from quantbench.core.errors import StoreError
from quantbench.core.machine import Machine
from quantbench.core.record import Record, Status
from quantbench.core.scenario import Conditions, Scenario, Variant
from quantbench.judge.compare.sides import is_whole, load_side
from quantbench.results.store import Run, Store

if TYPE_CHECKING:
    from pathlib import Path

MACHINE = Machine(cpu="Example CPU", cpus=2, memory_bytes=8 * 2**30, isa="avx2", system="Linux x86_64")


@pytest.mark.parametrize(("planned", "whole"), [(2, True), (14, False)])
def test_a_run_with_fewer_rows_than_it_was_asked_for_is_not_whole(planned: int, whole: bool, tmp_path: Path) -> None:
    root = str(tmp_path / "results")
    run = Run(
        machine=MACHINE, versions={}, command="pytest", commit="", profile="quick", engine="inline", run_id="one",
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    store = Store(root, run)
    store.begin(planned=planned)
    for precision in ("fp32", "bf16"):
        scenario = Scenario(
            model="canary", prompts="ten", variant=Variant(method="torch", precision=precision), conditions=Conditions()
        )
        store.append(Record(scenario=scenario, scenario_key="k", status=Status.OK, values={}, facts={}), instrument_check=True)
    for text in (root, "one"):
        assert is_whole(load_side(text, root), text, root) is whole
    (file, _) = sorted((tmp_path / "results" / "scenarios").rglob("*.parquet"))
    assert not is_whole(load_side(str(file), root), str(file), root)


@pytest.mark.parametrize("odd", ['"\\ud800"', "[" * 100_000, "9" * 5000])
def test_a_report_that_cannot_be_held_is_refused(odd: str, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(f'{{"benchmarks": [{{"name": "a", "extra_info": {{"scenario_id": "a", "model": {odd}}}}}]}}')
    with pytest.raises(StoreError, match="is not a report of pytest-benchmark"):
        load_side(str(path), "results")
