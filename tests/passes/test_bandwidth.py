"""Memory bandwidth: what counts, how often it is measured, what becomes of a failure; and the bytes that a step reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.passes import bandwidth
from quantbench.passes.bandwidth import bytes_per_token, copy_on_cpu, memory_bandwidth
from quantbench.trace import WeightMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MIB = 2**20


class Child:
    """Stands for the process that measures: each one finds the next figure."""

    def __init__(self, *figures: float, fails: str = "") -> None:
        self.commands: list[list[str]] = []
        self._figures = iter(figures)
        self._fails = fails

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self._fails:
            return subprocess.CompletedProcess(command, 1, "", f"Traceback\n{self._fails}\n")
        Path(command[-1]).write_text(json.dumps({"bytes_per_second": next(self._figures)}))
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Child], Child]:
    """Put a child in the place of the measuring process."""

    def put(child: Child) -> Child:
        monkeypatch.setattr(bandwidth.subprocess, "run", child)
        return child

    return put


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_read_and_bytes_written_both_count(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def two_seconds(copy: Callable[[], object]) -> float:
        copy()
        return 2.0

    monkeypatch.setattr(bandwidth, "_fastest", two_seconds)
    assert copy_on_cpu(threads, 3 * MIB) == 2 * 3 * MIB / 2.0


def test_every_byte_is_copied_and_the_fastest_time_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    seen = []
    copyto = np.copyto
    monkeypatch.setattr(np, "copyto", lambda target, source: (copyto(target, source), seen.append(target)))
    now = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])  # copies of 5, 2 and 9 seconds
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: next(now))
    assert copy_on_cpu(2, MIB) == 2 * MIB / 2.0
    assert len(seen) == 2 * (1 + 3)
    assert all(part.all() for part in seen)  # the source is no page of zeros that every read finds in the cache


def test_a_real_measurement_is_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_ARRAY_BYTES", MIB)
    monkeypatch.setattr(bandwidth, "_COPYING_S", 0.0)
    monkeypatch.setattr(sys, "argv", ["bandwidth", "cpu", "2", str(tmp_path / "out.json")])
    bandwidth.main()
    body = json.loads((tmp_path / "out.json").read_text())
    assert body["array_bytes"] == MIB
    assert 1e7 < body["bytes_per_second"] < 1e13


def test_it_is_measured_once_for_a_number_of_threads_in_a_process_of_its_own(stand_in: Callable[[Child], Child]) -> None:
    child = stand_in(Child(10e9, 20e9))
    assert [memory_bandwidth("cpu", threads) for threads in (1, 1, 2, 2, 1)] == [10e9, 10e9, 20e9, 20e9, 10e9]
    assert [command[:-1] for command in child.commands] == [
        [sys.executable, "-m", "quantbench.passes.bandwidth", "cpu", threads] for threads in ("1", "2")
    ]


def test_a_failure_is_a_reason_and_is_not_remembered(stand_in: Callable[[Child], Child]) -> None:
    stand_in(Child(fails="MemoryError: no room"))
    assert memory_bandwidth("cpu", 1) == "memory bandwidth could not be measured on cpu: MemoryError: no room"
    stand_in(Child(10e9))
    assert memory_bandwidth("cpu", 1) == 10e9


def test_a_device_that_is_not_there_is_not_tried(stand_in: Callable[[Child], Child], monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from quantbench.machine import describe

    child = stand_in(Child(1e12))
    here = describe()
    monkeypatch.setattr(bandwidth, "describe", lambda: replace(here, gpus=()))
    assert "no CUDA device" in str(memory_bandwidth("cuda", 1))
    assert child.commands == []
    monkeypatch.setattr(bandwidth, "describe", lambda: replace(here, gpus=("a GPU",)))
    assert memory_bandwidth("cuda", 1) == memory_bandwidth("cuda", 8) == 1e12  # threads are no matter there
    assert len(child.commands) == 1


@pytest.mark.parametrize(("prompts", "length"), [([(1,) * 3], 2), ([(1,) * 5, (1,) * 8], 16), ([(1,)] * 3, 3)])
def test_a_steps_bytes_are_the_mean_over_all_steps(prompts: Sequence[Sequence[int]], length: int) -> None:
    reads = []
    for prompt in prompts:
        cached = len(prompt)
        for _ in range(length - 1):  # the prompt pass gave the first token
            reads.append(1_000_000 + 1000 * cached)
            cached += 1
    weights = WeightMemory(by_kind={}, step_bytes=1_000_000, cache_position_bytes=1000)
    assert bytes_per_token(weights, prompts, length) == round(sum(reads) / len(reads))


@pytest.mark.parametrize("known", [{}, {"step_bytes": 5}, {"cache_position_bytes": 5}])
def test_a_part_that_is_not_known_leaves_no_figure(known: dict[str, int]) -> None:
    assert bytes_per_token(WeightMemory(by_kind={"parameters": 7}, **known), [(1,)], 4) is None
