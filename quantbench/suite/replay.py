"""Durations that were measured in a worker, as pytest-benchmark sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from quantbench.core.record import Missing
from quantbench.core.scenario import Reads, at_batch, short_name
from quantbench.metrics.latency import seconds_per_token

if TYPE_CHECKING:
    from quantbench.core.record import Record
    from quantbench.core.scenario import Scenario
    from quantbench.core.trace import Trace

Seconds = Callable[["Trace"], Sequence[float]]


class ReplayClock:
    """A timer for ``@pytest.mark.benchmark(timer=...)``; each call of ``advance`` moves it by the next sample."""

    __name__ = "worker_clock"  # pytest-benchmark writes a timer's name into its JSON, or its address when it has none

    def __init__(self) -> None:
        """At zero, with nothing to replay."""
        self._now = 0.0
        self._samples: Iterator[float] = iter(())

    def __call__(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    def load(self, samples: Iterable[float]) -> None:
        """Set the durations to replay, in seconds."""
        self._samples = iter(samples)

    def advance(self) -> None:
        """The function that pytest-benchmark believes it is timing."""
        self._now += next(self._samples, 0.0)


def _prefill(trace: Trace) -> list[float]:
    return [fmean(answer.prefill_s for answer in each.variant) for each in trace.rounds]


def _decode(trace: Trace) -> list[float]:
    return [seconds for each in trace.rounds if (seconds := seconds_per_token(each.variant))]


def _call(trace: Trace) -> list[float]:
    return [fmean(each.variant) for each in trace.calls]


PHASES: Mapping[str, Seconds] = {
    "prefill": _prefill, "decode": _decode, "call": _call, "score": lambda trace: trace.score_s,
}  # fmt: skip
"""By phase, its durations in seconds, one sample a round, prompt or chunk; none where a trace has no such phase."""
_OF_WHAT: Mapping[Reads, Sequence[str]] = {"prompts": ("prefill", "decode"), "text": ("score",), "inputs": ("call",)}
"""The phases that scenarios are known by, by what their models read."""


def benchmark_group(scenario: Scenario, test: str) -> str:
    """The group that pytest-benchmark compares in one table: all variants of a model and prompt set in the same test."""
    return f"{short_name(scenario.model)} {at_batch(short_name(scenario.prompts), scenario.batch)} {test.removeprefix('test_')}"


def extra_info(record: Record) -> dict[str, Any]:
    """What an entry of pytest-benchmark tells beside durations: the record's figures, and what they are of."""
    return {name: value for name, value in record.values.items() if not isinstance(value, Missing)} | {
        "scenario_id": record.scenario.id, "scenario_key": record.scenario_key, "status": str(record.status),
    }  # fmt: skip


def enter(benchmarks: Any, record: Record, trace: Trace) -> None:
    """Give pytest-benchmark's session an entry for each phase of a scenario that no test of its own stands for.

    Its names depend on the scenario alone, so that runs can be compared whichever test asked first.
    """
    from pytest_benchmark.fixture import BenchmarkFixture
    from pytest_benchmark.utils import NameWrapper

    scenario = record.scenario
    for phase in _OF_WHAT[scenario.reads]:
        if samples := PHASES[phase](trace):
            clock = ReplayClock()
            clock.load(samples)
            name = f"{phase}[{scenario.id}]"
            params = SimpleNamespace(id=scenario.id, params={"quantbench_scenario": scenario.id})
            entry = BenchmarkFixture(
                SimpleNamespace(name=name, nodeid=f"quantbench::{name}", callspec=params),
                add_stats=benchmarks.benchmarks.append, logger=benchmarks.logger, warner=None, disabled=benchmarks.disabled,
                **{**benchmarks.options, "timer": NameWrapper(clock), "group": benchmark_group(scenario, phase)},
            )  # fmt: skip
            entry.extra_info.update(extra_info(record))
            entry.pedantic(clock.advance, rounds=len(samples), iterations=1, warmup_rounds=0)
