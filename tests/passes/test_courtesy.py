"""What metrics may do after timed passes: a share of the job's time, over all its passes."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.record import Column
from quantbench.core.signals import Watched
from quantbench.core.waiting import Rest
from quantbench.measuring import signals
from quantbench.measuring.passes import courtesy
from quantbench.measuring.passes.courtesy import AFTERWARDS_SHARE, Courtesy
from quantbench.metrics import metric

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_work_after_passes_is_limited_by_a_share_of_all_time_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now, offered = [0.0], list[float]()
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(courtesy, "time", clock)
    monkeypatch.setattr(signals, "time", clock)

    @contextmanager
    def watch(during: Watched) -> Iterator[None]:
        def work() -> None:
            offered.append(during.spare_s())
            now[0] += max(0.0, min(5.0, during.spare_s()))

        yield
        during.afterwards(work)

    @metric(Column("slow", "s", doc="a figure that takes time"), signal=watch)
    def slow(trace: Any, reference: Any) -> Any:
        return {}

    monkeypatch.setattr(signals, "METRICS", [slow])
    with Rest(1) as rest:
        made = Courtesy(rest, None)
        for seconds in (8.0, 6.0, 100.0):
            with made.timed(Watched(name="latency")):
                now[0] += seconds
    assert offered == pytest.approx([2.0, 0.25 * 16 - 2, 0.25 * 118 - 4])
    assert AFTERWARDS_SHARE * now[0] >= 2 + 2 + 5
