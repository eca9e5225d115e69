"""Whether work of others disturbed a row: bounds, words, and reasons where nothing is known."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from quantbench.core.other_work import OtherWork
from quantbench.core.record import Missing
from quantbench.core.trace import Trace
from quantbench.metrics.other_work import other_work

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("others_cpu_share", "steal_share", "others_gpu_share", "disturbed", "disturbance")
BOTH = "other processes took 30% of the CPU time and other guests of the host took 20% of the CPU time"
ON_CPU = {"others_gpu": "the model ran on the CPU"}


def seen(**shares: float) -> OtherWork:
    return OtherWork(**({"window_s": 2.0, "cpus": 2, "tick_share": 1 / 400, "absent": ON_CPU} | shares))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (seen(others_cpu=0.03, steal=0.01), ""),
        (seen(others_cpu=0.07, steal=0.05), ""),
        (seen(others_cpu=0.43, steal=0.01), "other processes took 43% of the CPU time"),
        (seen(others_cpu=0.0, steal=0.12), "other guests of the host took 12% of the CPU time"),
        (seen(others_cpu=0.3, steal=0.2), BOTH),
        (seen(others_cpu=0.015, steal=0.0, cpus=64), ""),
        (seen(others_cpu=0.03, steal=0.0, cpus=64), "other processes took 3% of the CPU time"),
        (seen(others_cpu=0.10, steal=0.1, tick_share=1 / 24), ""),
        (seen(others_cpu=0.0, steal=0.0, rested=True), "threads did not spin where they waited, so as to give way"),
        (seen(others_cpu=0.0, steal=0.0, others_gpu=0.3, absent={}), "other processes kept the GPU busy 30% of the time"),
    ],
)  # fmt: skip
def test_a_row_is_disturbed_by_what_passes_its_bound(found: OtherWork, why: str, trace: Trace) -> None:
    values = other_work.compute(replace(trace, signals={"other_work": asdict(found)}), None)
    assert (values["disturbed"], values["disturbance"]) == (bool(why), why)
    assert values["others_cpu_share"] == found.others_cpu
    assert values["steal_share"] == found.steal
    assert values["others_gpu_share"] == (Missing(ON_CPU["others_gpu"]) if found.others_gpu is None else found.others_gpu)


def test_without_timing_all_is_null_with_the_reason(trace: Trace) -> None:
    values = other_work.compute(replace(trace, rounds=(), absent={"rounds": "a text is not answered"}), None)
    assert values == dict.fromkeys(NAMES, Missing("a text is not answered"))


def test_where_no_signal_can_be_had_nobody_says_that_it_was_quiet(trace: Trace) -> None:
    blind = OtherWork(window_s=2.0, absent={**ON_CPU, "others_cpu": "no /proc/stat", "steal": "no /proc/stat"})
    values = other_work.compute(replace(trace, signals={"other_work": asdict(blind)}), None)
    assert values["disturbed"] == values["disturbance"] == Missing("no /proc/stat")


def test_it_travels_from_the_worker_as_it_is(trace: Trace, tmp_path: Path) -> None:
    whole = replace(trace, signals={"other_work": asdict(seen(others_cpu=0.25, steal=0.0))})
    whole.save(tmp_path / "trace-0.json")
    assert Trace.load(tmp_path / "trace-0.json").signals == whole.signals
