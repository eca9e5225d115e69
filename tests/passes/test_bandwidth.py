"""Memory bandwidth: what counts, how often it is measured, what becomes of a failure; and the bytes that a step reads."""

from __future__ import annotations

import itertools
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.errors import ChildError
from quantbench.core.trace import WeightMemory
from quantbench.measuring.passes import bandwidth
from quantbench.measuring.passes.bandwidth import bytes_per_token, copy_on_cpu, memory_bandwidth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from conftest import FakeNvml

MIB = 2**20


class Child:
    """Stands for the process that measures: each one finds the next figure."""

    def __init__(self, *figures: float, fails: str = "") -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._figures = iter(figures)
        self._fails = fails

    def __call__(self, module: str, request: dict[str, Any], task: str, *, timeout_s: float) -> dict[str, float]:
        assert timeout_s > 0
        self.requests.append((module, request))
        if self._fails:
            raise ChildError(task, "ended with exit code 1", self._fails)
        return {"bytes_per_second": next(self._figures)}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Child], Child]:
    """Put a child in the place of the measuring process."""

    def put(child: Child) -> Child:
        monkeypatch.setattr(bandwidth, "call", child)
        return child

    return put


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_read_and_bytes_written_both_count(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(step=2.0)
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: next(now))
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


def test_a_real_measurement_is_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "available_memory", lambda: 10 * MIB)
    body = bandwidth.measure({"device": "cpu", "threads": 2})
    assert body["array_bytes"] == MIB
    assert 1e7 < body["bytes_per_second"] < 1e13


def test_a_run_measures_once_for_a_number_of_threads_in_a_process_of_its_own(
    stand_in: Callable[[Child], Child], tmp_path: Path
) -> None:
    child = stand_in(Child(10e9, 20e9))
    assert [memory_bandwidth("cpu", threads, tmp_path) for threads in (1, 1, 2, 2, 1)] == [10e9, 10e9, 20e9, 20e9, 10e9]
    assert child.requests == [(bandwidth.__name__, {"device": "cpu", "threads": threads}) for threads in (1, 2)]


def test_each_run_measures_again_and_what_was_disturbed_never_counts(
    stand_in: Callable[[Child], Child], tmp_path: Path
) -> None:
    stand_in(Child(13e9, 26e9, 12e9, 27e9))
    runs = [tmp_path / str(number) for number in range(4)]
    for run in runs:
        run.mkdir()
    assert [memory_bandwidth("cpu", 2, run) for run in runs] == [13e9, 26e9, 26e9, 27e9]
    assert memory_bandwidth("cpu", 2, runs[0]) == 13e9  # one run has one figure


def test_a_failure_is_a_reason_and_is_not_remembered(stand_in: Callable[[Child], Child], tmp_path: Path) -> None:
    stand_in(Child(fails="ValueError: no room"))
    assert memory_bandwidth("cpu", 1, tmp_path) == "memory bandwidth could not be measured on cpu: ValueError: no room"
    stand_in(Child(10e9))
    assert memory_bandwidth("cpu", 1, tmp_path) == 10e9


def test_a_device_that_is_not_there_is_not_tried(
    stand_in: Callable[[Child], Child], nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    child = stand_in(Child(1e12))
    said = str(memory_bandwidth("cuda:2", 1, tmp_path))
    assert "the only GPUs are cuda:0 (NVIDIA H100 80GB HBM3), cuda:1 (" in said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES= hides 2 GPUs" in str(memory_bandwidth("cuda", 1, tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    nvml.boards.clear()
    assert "NVML lists no GPU" in str(memory_bandwidth("cuda", 1, tmp_path))
    assert child.requests == []


@pytest.mark.usefixtures("nvml")
def test_a_gpu_is_measured_once_whatever_its_number_and_the_threads(
    stand_in: Callable[[Child], Child], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    """Several GPUs are as fast as the first: a model that is spread over them reads from one after the other."""
    child = stand_in(Child(1e12, 2e12))
    assert memory_bandwidth("cuda", 1, tmp_path) == memory_bandwidth("cuda:0", 8, tmp_path) == 1e12
    assert memory_bandwidth("cuda:1", 1, tmp_path) == 2e12
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert memory_bandwidth("cuda", 1, tmp_path) == 2e12
    assert [request["device"] for _, request in child.requests] == ["cuda", "cuda:1"]


class FakeEvent:
    """A mark on the device's clock, which runs 2 ms a copy."""

    def __init__(self, cuda: FakeCuda, *, enable_timing: bool) -> None:
        assert enable_timing
        self._cuda = cuda
        self.at_ms = 0.0

    def record(self) -> None:
        self.at_ms = self._cuda.now_ms

    def synchronize(self) -> None:
        self._cuda.synchronized += 1

    def elapsed_time(self, other: FakeEvent) -> float:
        return other.at_ms - self.at_ms


class FakeCuda:
    """torch.cuda on a device whose copies take 2 ms, but for a slow one now and then; ``free`` bytes are free there."""

    def __init__(self, free: int = 0) -> None:
        self.free = free
        self.now_ms = 0.0
        self.copies = 0
        self.synchronized = 0

    def device(self, _: str) -> AbstractContextManager[None]:
        return nullcontext()

    def Event(self, *, enable_timing: bool) -> FakeEvent:  # noqa: N802 - its name
        return FakeEvent(self, enable_timing=enable_timing)

    def mem_get_info(self, _: str) -> tuple[int, int]:
        return self.free, 80 * 2**30

    def copy_(self, _source: object, *, non_blocking: bool = False) -> None:
        self.copies += 1
        self.now_ms += 9.0 if self.copies % 25 == 0 else 2.0


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A torch with a device that keeps time."""
    fake = FakeCuda()
    torch = SimpleNamespace(cuda=fake, uint8="uint8", ones=lambda *_, **__: fake, empty_like=lambda _: fake)
    monkeypatch.setitem(sys.modules, "torch", torch)
    return fake


def test_many_copies_on_a_gpu_are_timed_together_on_its_own_clock(cuda: FakeCuda) -> None:
    assert bandwidth.copy_on_device("cuda", 1_000_000) == pytest.approx(2 * 1_000_000 / 0.002)
    assert cuda.copies >= 10 * cuda.synchronized  # far fewer waits than copies


@pytest.mark.parametrize(("free", "size"), [(79 * 2**30, 2**30), (5 * 2**30, 2**29), (100 * MIB, 10 * MIB)])
def test_the_arrays_go_by_the_devices_memory_and_not_the_hosts(
    free: int, size: int, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "available_memory", lambda: 0)
    cuda.free = free
    assert bandwidth.device_array_bytes("cuda") == size


@pytest.mark.gpu
def test_on_a_gpu_it_is_what_one_long_row_of_copies_takes() -> None:
    """Against the wall clock around many copies that are waited for once."""
    import time

    import torch

    size = bandwidth.device_array_bytes("cuda")
    found = bandwidth.copy_on_device("cuda", size)
    source = torch.ones(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    taken = []
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(50):
            target.copy_(source)
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - started) / 50)
    assert found == pytest.approx(2 * size / min(taken), rel=0.1)


@pytest.mark.parametrize(("prompts", "length"), [([(1,) * 3], 2), ([(1,) * 5, (1,) * 8], 16), ([(1,)] * 3, 3)])
def test_a_steps_bytes_are_the_mean_over_all_steps(prompts: Sequence[Sequence[int]], length: int) -> None:
    reads = []
    for prompt in prompts:
        cached = len(prompt)
        for _ in range(length - 1):  # the prompt pass gave the first token
            reads.append(1_000_000 + 1000 * cached)
            cached += 1
    weights = WeightMemory(by_kind={}, step_bytes=1_000_000, cache_position_bytes=1000)
    assert bytes_per_token(weights, prompts, length, 1) == round(sum(reads) / len(reads))
    cached = sum(reads) / len(reads) - 1_000_000
    assert bytes_per_token(weights, prompts, length, 8) == round((1_000_000 + 8 * cached) / 8)  # one pass over the weights


@pytest.mark.parametrize("known", [{}, {"step_bytes": 5}, {"cache_position_bytes": 5}])
def test_a_part_that_is_not_known_leaves_no_figure(known: dict[str, int]) -> None:
    assert bytes_per_token(WeightMemory(by_kind={"parameters": 7}, **known), [(1,)], 4, 1) is None
