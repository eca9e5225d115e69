"""pytest-benchmark, through its documented API, sees the samples that the clock was loaded with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from quantbench.suite.replay import ReplayClock

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


@given(st.lists(st.floats(1e-9, 1e3), max_size=20))
def test_each_advance_moves_by_the_next_sample(samples: list[float]) -> None:
    clock = ReplayClock()
    clock.load(samples)
    now = clock()
    for sample in samples:
        clock.advance()
        assert clock() == now + sample
        now = clock()


def test_a_clock_with_nothing_left_stands_still() -> None:
    clock = ReplayClock()
    clock.advance()
    clock.load([0.5])
    clock.advance()
    clock.advance()
    assert clock() == 0.5


def test_time_never_runs_backwards_when_new_samples_are_loaded() -> None:
    clock = ReplayClock()
    clock.load([2.0])
    clock.advance()
    clock.load([1.0])
    assert clock() == 2.0


def test_benchmark_json_holds_the_samples_and_the_clocks_name(pytester: pytest.Pytester, tmp_path: Path) -> None:
    """No address of an object in the JSON, so that two runs can be compared."""
    pytester.makepyfile("""
        import pytest
        from quantbench.suite.replay import ReplayClock

        CLOCK = ReplayClock()

        @pytest.mark.benchmark(timer=CLOCK)
        def test_replayed(benchmark):
            CLOCK.load([0.25, 0.5, 4.0])
            benchmark.pedantic(CLOCK.advance, rounds=3, iterations=1, warmup_rounds=0)
    """)
    out = tmp_path / "out.json"
    pytester.runpytest_subprocess(f"--benchmark-json={out}", "-p", "no:cacheprovider").assert_outcomes(passed=1)
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    assert benchmark["options"]["timer"] == "worker_clock"
    assert benchmark["stats"]["data"] == [0.25, 0.5, 4.0]
