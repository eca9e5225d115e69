"""The memory pass in a process of its own that touches a known number of bytes."""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

import quantbench
from quantbench.measuring.passes import device_context, memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conftest import Board, FakeNvml

MIB = 2**20
HOLDING, PASSING, MAPPED = 48 * MIB, 96 * MIB, 32 * MIB
LARGE = 192 * MIB
COPIES = LARGE // MAPPED

PRELUDE = """
import json, mmap, sys, time
from dataclasses import asdict
from quantbench.measuring.passes import memory
from quantbench.measuring.passes.memory import before_loading, measure_peak, peak_during, reset_high_water, resident

PAGE = mmap.PAGESIZE
looks = []

def counted():
    looks.append(None)
    return resident()

memory.resident = counted

def hold():  # until what is resident now was surely sampled, however busy the machine
    seen, patience = len(looks), time.monotonic() + 30
    while len(looks) < seen + 2 and time.monotonic() < patience:
        time.sleep(memory.SAMPLE_S)

def anonymous(size):
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, size, PAGE):
        area[offset] = 1
    return area

def mapped(path, size):
    with open(path, "rb") as stream:
        area = mmap.mmap(stream.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    sum(area[offset] for offset in range(0, len(area), PAGE))
    return area
"""

KNOWN = f"""
LARGE, MAPPED, COPIES, BLOCK = {LARGE}, {MAPPED}, {COPIES}, 100_000
kept = []

def release():
    for area in kept:
        if isinstance(area, mmap.mmap):
            area.close()
    kept.clear()

def anonymous_kept():
    kept.append(anonymous(LARGE))

def bytes_kept():
    kept.append(b"x" * LARGE)

def array_kept():
    import numpy as np
    kept.append(np.ones(LARGE, np.uint8))

def anonymous_freed():
    area = anonymous(LARGE)
    hold()
    area.close()

def file_kept():  # every mapping of a page counts
    kept.extend(mapped(sys.argv[1], MAPPED) for _ in range(COPIES))

def file_freed():
    file_kept()
    hold()
    release()

def half_of_each_then_only_the_file():
    half = anonymous(LARGE // 2)
    kept.extend(mapped(sys.argv[1], MAPPED) for _ in range(COPIES // 2))
    hold()
    half.close()

def anonymous_freed_then_half_a_file():
    anonymous_freed()
    kept.extend(mapped(sys.argv[1], MAPPED) for _ in range(COPIES // 2))
    hold()

def in_blocks():  # each too small for a mapping of its own, so that the allocator keeps what is freed below the last one
    kept.extend(bytearray(BLOCK) for _ in range(LARGE // BLOCK))

def measured(work):
    loading = before_loading("cpu")
    start = resident()
    peak = peak_during(work, loading.ended())
    release()
    return [start, asdict(peak)]

import numpy
found = {{work.__name__: measured(work) for work in (
    anonymous_kept, bytes_kept, array_kept, anonymous_freed, file_kept, file_freed, half_of_each_then_only_the_file,
    anonymous_freed_then_half_a_file,
)}}
anonymous(LARGE).close()
found["nothing_after_much_was_freed"] = measured(lambda: None)
in_blocks()
del kept[:-1]
found["in_blocks_that_the_allocator_had_before"] = measured(in_blocks)
print(json.dumps(found))
"""

TRUTH = {
    "anonymous_kept": (LARGE, LARGE, 0),
    "bytes_kept": (LARGE, LARGE, 0),
    "array_kept": (LARGE, LARGE, 0),
    "anonymous_freed": (LARGE, LARGE, 0),
    "file_kept": (LARGE, 0, LARGE),
    "file_freed": (LARGE, 0, LARGE),
    "half_of_each_then_only_the_file": (LARGE, LARGE // 2, LARGE // 2),
    "anonymous_freed_then_half_a_file": (LARGE, LARGE, 0),
    "nothing_after_much_was_freed": (0, 0, 0),
    "in_blocks_that_the_allocator_had_before": (LARGE, LARGE, 0),
}
"""What each adds to the process: its peak, and the anonymous and the file-backed part of that."""


@pytest.fixture(scope="module")
def large_file() -> str:
    """A file on a disk: what lies in a tmpfs counts as shared memory. Any installed library that is large enough."""
    import pyarrow as pa

    return str(next(path for path in Path(pa.__file__).parent.glob("lib*.so*") if path.stat().st_size >= MAPPED))


@pytest.fixture(scope="module")
def known(large_file: str) -> Mapping[str, Sequence[Mapping[str, int]]]:
    """Every case of TRUTH, one after the other in one fresh process."""
    return _run(KNOWN, large_file)  # type: ignore[return-value]


def _close(size: int) -> object:
    """Within 2 % and 1 MiB: the interpreter itself breathes a little."""
    return pytest.approx(size, rel=0.02, abs=0.02 * size + MIB)


def _run(script: str, *arguments: str) -> Mapping[str, Mapping[str, int]]:
    command = [sys.executable, "-c", PRELUDE + script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found: Mapping[str, Mapping[str, int]] = json.loads(done.stdout)
    return found


def test_touched_bytes_are_resident_and_anonymous() -> None:
    found = _run(f"before = resident(); kept = anonymous({HOLDING}); print(json.dumps([before, resident()]))")
    before, after = found
    assert after["VmRSS"] - before["VmRSS"] == _close(HOLDING)
    assert after["RssAnon"] - before["RssAnon"] == _close(HOLDING)
    assert after["RssFile"] - before["RssFile"] < MIB


def test_a_mapped_file_is_resident_and_file_backed(large_file: str) -> None:
    script = f"before = resident(); kept = mapped(sys.argv[1], {MAPPED}); print(json.dumps([before, resident()]))"
    before, after = _run(script, large_file)
    assert after["RssFile"] - before["RssFile"] == _close(MAPPED)
    assert after["RssAnon"] - before["RssAnon"] < MIB


def test_the_high_water_mark_remembers_what_was_given_back_until_it_is_reset() -> None:
    before, passed, reset = _run(
        f"before = resident(); anonymous({PASSING}).close(); passed = resident(); reset_high_water()\n"
        "print(json.dumps([before, passed, resident()]))"
    )
    assert passed["VmHWM"] - before["VmRSS"] == _close(PASSING)
    assert passed["VmRSS"] - before["VmRSS"] < MIB
    assert reset["VmHWM"] - reset["VmRSS"] < MIB


def test_a_parents_peak_is_not_inherited() -> None:
    """What ru_maxrss would count: the parent held more than the child ever did."""
    script = (
        f"import os, subprocess\nkept = anonymous({PASSING})\n"
        "child = 'import json; from quantbench.measuring.passes.memory import *; '\n"
        "child += 'reset_high_water(); print(json.dumps([resident()]))'\n"
        "print(subprocess.run([sys.executable, '-c', child], capture_output=True, text=True, check=True).stdout)"
    )
    (child,) = _run(script)
    assert child["VmHWM"] < PASSING


@pytest.mark.parametrize("case", TRUTH)
def test_peak_and_split_are_what_was_touched(case: str, known: Mapping[str, Sequence[Mapping[str, int]]]) -> None:
    """Within 2 % of what is known to have been touched; the split is that of the peak, whatever is left at the end."""
    if case.startswith("in_blocks") and not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library cannot be asked to give freed memory back")
    start, peak = known[case]
    growth, anonymous, file = TRUTH[case]
    near = 0.02 * LARGE
    assert peak["peak_rss_bytes"] - peak["start_rss_bytes"] == pytest.approx(growth, abs=near)
    assert peak["rss_anon_bytes"] - start["RssAnon"] == pytest.approx(anonymous, abs=near)
    assert peak["rss_file_bytes"] - start["RssFile"] == pytest.approx(file, abs=near)


def test_measure_peak_splits_loading_from_answering(large_file: str) -> None:
    """Loading passes a high peak and keeps weights and a mapped file; answering takes a little and gives it back."""
    answering = 16 * MIB
    script = f"""
class Model:
    def __init__(self, path):
        anonymous({PASSING}).close()
        self.weights, self.file = anonymous({HOLDING}), mapped(path, {MAPPED})

    def generate(self, prompt, limit, sampling=None):
        work = anonymous({answering})
        yield from range(limit)
        hold()
        work.close()

    def synchronize(self):
        pass

loading = before_loading("cpu")
before = resident()
model = Model(sys.argv[1])
print(json.dumps([before, asdict(measure_peak(model, [(1, 2), (3,)], 4, loading.ended()))]))
"""
    before, peak = _run(script, large_file)
    assert peak["start_rss_bytes"] == pytest.approx(before["VmRSS"], abs=MIB)
    assert peak["load_peak_rss_bytes"] - before["VmRSS"] == _close(PASSING)
    assert peak["peak_rss_bytes"] - before["VmRSS"] == _close(HOLDING + MAPPED + answering)
    assert peak["rss_anon_bytes"] - before["RssAnon"] == _close(HOLDING + answering)
    assert peak["rss_file_bytes"] - before["RssFile"] == _close(MAPPED)
    assert (peak["device_allocated_bytes"], peak["device_reserved_bytes"]) == (None, None)


def test_resident_agrees_with_psutil() -> None:
    import psutil

    found = memory.resident()
    assert found["VmRSS"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.02, abs=2 * MIB)
    assert found["VmHWM"] >= found["VmRSS"] - MIB
    assert found["RssAnon"] + found["RssFile"] <= found["VmRSS"] + MIB


def _status(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: str) -> None:
    """This process's status has these lines alone."""
    kept = [line for line in memory.STATUS.read_text().splitlines() if line.partition(":")[0] in lines]
    (folder / "status").write_text("\n".join(["Name:\tpython", *kept, ""]))
    monkeypatch.setattr(memory, "STATUS", folder / "status")


@pytest.mark.parametrize(
    ("lines", "lacking"),
    [
        (("VmHWM", "VmRSS"), {"rss_anon_bytes": "RssAnon", "rss_file_bytes": "RssFile"}),  # Linux before 4.5
        (
            ("VmRSS",),  # gVisor: pkg/sentry/fsimpl/proc/task_files.go, statusData.Generate
            {
                "peak_rss_bytes": "VmHWM", "load_peak_rss_bytes": "VmHWM", "rss_anon_bytes": "RssAnon",
                "rss_file_bytes": "RssFile",
            },
        ),
    ],
    ids=["no split", "VmRSS alone"],
)  # fmt: skip
def test_what_the_kernel_does_not_report_is_missing_and_says_so(
    lines: Sequence[str], lacking: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _status(monkeypatch, tmp_path, *lines)
    peak = memory.peak_during(lambda: None, memory.before_loading("cpu").ended())
    host = ("peak_rss_bytes", "start_rss_bytes", "load_peak_rss_bytes", "rss_anon_bytes", "rss_file_bytes")
    assert {name for name in host if getattr(peak, name) is None} == set(lacking)
    for name, line in lacking.items():
        assert peak.absent[name] == (
            f"host memory is read from {line} of /proc/self/status, which this system lacks; measure on Linux 4.5 or newer"
        )


def test_without_proc_there_is_no_host_memory_and_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    peak = memory.peak_during(lambda: None, memory.before_loading("cpu").ended())
    assert (peak.peak_rss_bytes, peak.start_rss_bytes, peak.rss_anon_bytes) == (None, None, None)
    assert peak.absent["start_rss_bytes"].startswith("host memory is read from /proc/self/status, which this system lacks")


def test_a_peak_that_cannot_be_reset_is_missing_and_the_sampled_split_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "none" / "clear_refs")
    peak = memory.peak_during(lambda: None, memory.before_loading("cpu").ended())
    assert (peak.peak_rss_bytes, peak.load_peak_rss_bytes) == (None, None)
    assert "cannot be written here (No such file or directory); measure on Linux" in peak.absent["peak_rss_bytes"]
    assert peak.absent["load_peak_rss_bytes"] == peak.absent["peak_rss_bytes"]
    assert None not in (peak.start_rss_bytes, peak.rss_anon_bytes, peak.rss_file_bytes)


def test_a_run_without_clear_refs_keeps_its_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared_cache: Path
) -> None:
    """Speed, similarity and weights are measured; the peaks are null with the reason."""
    monkeypatch.setenv("QUANTBENCH_CACHE", str(shared_cache))
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "none" / "clear_refs")
    _status(monkeypatch, tmp_path, "VmRSS")
    asked: dict[str, Any] = {
        "prompts": "two", "profile": "quick", "output_tokens": 4, "engine": "inline", "no_probes": True, "threads": 1,
    }  # fmt: skip
    quantbench.measure("canary", "torch/bf16", results=str(tmp_path / "results"), **asked)
    (row,) = pd.read_parquet(tmp_path / "results" / "scenarios").to_dict("records")
    assert row["status"] == "ok"
    assert 0 < row["kld_mean"] < 1
    assert row["decode_tps"] > 0
    assert row["weight_bytes"] > 0
    names = ("peak_rss_bytes", "peak_rss_growth_bytes", "load_peak_rss_bytes", "rss_anon_bytes", "rss_file_bytes")
    assert all(pd.isna(row[name]) for name in names)
    reasons = json.loads(row["null_reasons"])
    assert all("lacks" in reasons[name] for name in names)


@dataclass
class FakeDriver:
    """The driver of two GPUs that are counted from 7; a context takes ``takes`` bytes of a board."""

    boards: Sequence[Board]
    takes: int = 0
    fails: dict[str, int] = field(default_factory=dict)
    active: set[int] = field(default_factory=set)
    told: list[str] = field(default_factory=list)

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's names, also below
        self.told.append("init")
        return self.fails.get("cuInit", flags)

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.boards)
        return 0

    def cuDeviceGet(self, gpu: Any, number: int) -> int:  # noqa: N802
        gpu._obj.value = 7 + number
        return 0

    def cuDevicePrimaryCtxGetState(self, gpu: Any, _flags: Any, active: Any) -> int:  # noqa: N802
        active._obj.value = gpu.value in self.active
        return 0

    def cuDevicePrimaryCtxRetain(self, _context: Any, gpu: Any) -> int:  # noqa: N802
        if code := self.fails.get("cuDevicePrimaryCtxRetain"):
            return code
        self.told.append(f"made {gpu.value}")
        if gpu.value not in self.active:
            self.active.add(gpu.value)
            self.boards[gpu.value - 7].used += self.takes
        return 0


@pytest.fixture
def driver(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A stand-in for CUDA's driver whose contexts take nothing, unless a test says how much."""
    fake = FakeDriver(list(nvml.boards.values()))
    library = SimpleNamespace(**{**vars(ctypes), "CDLL": lambda _name: fake})
    monkeypatch.setattr(device_context, "ctypes", library)
    return fake


@dataclass
class FakeCuda:
    """torch.cuda with figures by GPU: a model of 5 and 7 bytes that answers with two more on each."""

    used: bool = True
    told: list[str] = field(default_factory=list)

    def is_initialized(self) -> bool:
        return self.used

    def device_count(self) -> int:
        return 2

    def empty_cache(self) -> None:
        self.told.append("empty_cache")

    def reset_peak_memory_stats(self, device: int) -> None:
        self.told.append(f"reset {device}")

    def max_memory_allocated(self, device: int) -> int:
        return (5, 7)[device]

    def max_memory_reserved(self, device: int) -> int:
        return (50, 70)[device]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A torch that has used its GPUs."""
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=fake))
    return fake


@pytest.mark.parametrize(
    ("device", "used", "expected", "reset"),
    [
        ("cuda:1", True, (7, 70), ["reset 1"]),
        ("cuda:0", True, (5, 50), ["reset 0"]),
        ("cuda", True, (12, 120), ["reset 0", "reset 1"]),
        ("cuda", False, (0, 0), []),
        ("cpu", True, (None, None), []),
    ],
)
@pytest.mark.usefixtures("driver")
def test_the_devices_peaks_are_those_of_the_gpus_asked_for(
    device: str, used: bool, expected: tuple[int | None, int | None], reset: list[str], cuda: FakeCuda
) -> None:
    """A runtime with an allocator of its own leaves torch unused, and asking torch would take device memory itself."""
    cuda.used = used
    loading = memory.before_loading(device).ended()
    assert loading.device_allocated_bytes == expected[0]
    assert cuda.told == (["empty_cache", *reset] if reset else [])
    peak = memory.peak_during(lambda: None, loading)
    assert (peak.device_allocated_bytes, peak.device_reserved_bytes) == expected
    assert peak.load_device_allocated_bytes == expected[0]
    assert cuda.told == 2 * (["empty_cache", *reset] if reset else [])


class Answering:
    """A board of which a model takes ``load`` when it is opened and the figures of ``answer`` while it answers."""

    def __init__(self, board: Board, others: int, load: int, answer: Sequence[int]) -> None:
        self._board, self._others, self._load, self._answer = board, others, load, answer
        board.used = others

    def opened(self) -> None:
        self._board.used = self._others + self._load

    def __call__(self) -> None:
        for size in self._answer:
            self._board.used = self._others + self._load + size
            self._board.processes = [(1, 10**12), (os.getpid(), 500 + self._load + size)]
            seen = self._board.looks
            patience = time.monotonic() + 30
            while self._board.looks < seen + 3 and time.monotonic() < patience:
                time.sleep(memory.SAMPLE_S)


@pytest.fixture
def uses_cuda(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something in this process has opened CUDA before."""
    monkeypatch.setattr(device_context, "uses_cuda", lambda: True)


@pytest.mark.usefixtures("uses_cuda")
def test_what_the_driver_says_is_the_highest_sample_beyond_the_start(nvml: FakeNvml) -> None:
    """Of this process alone, and of the boards what was taken since before the model was opened."""
    first, second = nvml.boards.values()
    first_work, second_work = Answering(first, 9000, 100, [3, 40, 1]), Answering(second, 80, 200, [7])
    loading = memory.before_loading("cuda")
    first_work.opened()
    second_work.opened()

    def work() -> None:
        first_work()
        second_work()

    peak = memory.peak_during(work, loading.ended())
    assert peak.device_used_bytes == max(100 + 40 + 200, 100 + 1 + 200 + 7)
    assert peak.device_process_bytes == max(500 + 100 + 40, 500 + 100 + 1 + 500 + 200 + 7)
    assert peak.absent == {}
    assert (peak.device_allocated_bytes, peak.device_reserved_bytes) == (0, 0)


@pytest.mark.usefixtures("uses_cuda")
def test_one_gpu_of_several_is_that_one_alone(nvml: FakeNvml) -> None:
    first, second = nvml.boards.values()
    work = Answering(second, 80, 200, [7])
    loading = memory.before_loading("cuda:1").ended()
    work.opened()
    first.used = 10**10
    assert memory.peak_during(work, loading).device_used_bytes == 207


@pytest.mark.usefixtures("driver")
def test_a_process_that_the_driver_does_not_list_has_no_figure_and_says_so(nvml: FakeNvml) -> None:
    """The board's own growth is known all the same."""
    next(iter(nvml.boards.values())).processes = [(1, 10**12), (os.getpid(), None)]
    peak = memory.peak_during(lambda: None, memory.before_loading("cuda").ended())
    assert peak.device_process_bytes is None
    assert set(peak.absent) == {"device_process_bytes"}
    assert "by another number" in peak.absent["device_process_bytes"]
    assert peak.device_used_bytes == 0


def test_another_process_of_the_same_number_is_not_taken_for_this_one(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the driver may name processes by the host's numbers: one that held memory before cannot be this one."""
    next(iter(nvml.boards.values())).processes = [(os.getpid(), 10**9)]
    monkeypatch.setattr(device_context, "uses_cuda", lambda: False)
    peak = memory.peak_during(lambda: None, memory.before_loading("cuda").ended())
    assert peak.device_process_bytes is None
    assert "by another number" in peak.absent["device_process_bytes"]


@pytest.mark.usefixtures("driver")
def test_what_nvml_refuses_costs_that_figure_alone(nvml: FakeNvml) -> None:
    nvml.refuses["nvmlDeviceGetComputeRunningProcesses"] = "Not Supported"
    peak = memory.peak_during(lambda: None, memory.before_loading("cuda").ended())
    assert peak.device_used_bytes == 0
    assert peak.absent == {"device_process_bytes": "NVML does not give it for this GPU: Not Supported"}


def test_a_peak_that_was_not_watched_to_its_end_is_none(nvml: FakeNvml) -> None:
    first = next(iter(nvml.boards.values()))
    work = Answering(first, 80, 200, [7])

    def broken() -> None:
        work()
        nvml.refuses["nvmlDeviceGetMemoryInfo"] = "GPU is lost"

    peak = memory.peak_during(broken, memory.before_loading("cuda").ended())
    assert peak.device_used_bytes is None
    assert "GPU is lost" in peak.absent["device_used_bytes"]


def test_cudas_context_is_made_first_and_its_bytes_are_nobodys_but_its_own(nvml: FakeNvml, driver: FakeDriver) -> None:
    """Before the baseline, on every GPU asked for; what a model takes later is counted from there."""
    driver.takes = 500
    first, second = nvml.boards.values()
    first.used, second.used = 9000, 80
    made = device_context.make_context("cuda")
    loading = memory.before_loading("cuda", made)
    assert driver.told == ["init", "made 7", "made 8"]
    assert (first.used, second.used) == (9500, 580)
    first.used += 100
    peak = memory.peak_during(lambda: None, loading.ended())
    assert (peak.device_context_bytes, peak.device_used_bytes) == (1000, 100)


def test_one_gpu_gets_a_context_on_that_one_alone(driver: FakeDriver) -> None:
    driver.takes = 500
    assert device_context.make_context("cuda:1").context_bytes == 500
    assert driver.told == ["init", "made 8"]


def test_a_context_that_was_there_has_no_bytes_and_says_so(driver: FakeDriver) -> None:
    """An import made it, or with the inline engine an earlier job."""
    driver.active = {8}
    peak = memory.peak_during(lambda: None, memory.before_loading("cuda").ended())
    assert peak.device_context_bytes is None
    assert peak.absent["device_context_bytes"].startswith("this process had CUDA's context before")


@pytest.mark.parametrize("step", ["cuInit", "cuDevicePrimaryCtxRetain"])
def test_a_context_that_cannot_be_made_costs_its_bytes_alone(step: str, driver: FakeDriver) -> None:
    driver.fails[step] = 2
    peak = memory.peak_during(lambda: None, memory.before_loading("cuda").ended())
    assert peak.absent["device_context_bytes"] == f"CUDA's context could not be made: {step} failed with error 2"
    assert peak.device_used_bytes == 0


def test_where_cudas_driver_is_not_installed_the_reason_says_so(nvml: FakeNvml) -> None:
    """NVML's stand-in alone, as on this machine: there is no libcuda."""
    if ctypes.util.find_library("cuda"):
        pytest.skip("this machine has CUDA's driver")
    assert "CUDA's driver cannot be opened" in str(device_context.make_context("cuda").context_bytes)
    assert nvml.asked


def test_without_nvml_the_reason_says_so(nvml: FakeNvml) -> None:
    nvml.refuses["nvmlInit"] = "Driver Not Loaded"
    peak = memory.peak_during(lambda: None, memory.before_loading("cuda").ended())
    assert (peak.device_process_bytes, peak.device_used_bytes) == (None, None)
    assert set(peak.absent) == {"device_process_bytes", "device_used_bytes", "device_context_bytes"}
    assert set(peak.absent.values()) == {"NVML cannot be opened: Driver Not Loaded"}


def test_on_the_cpu_nvml_is_not_asked(nvml: FakeNvml) -> None:
    peak = memory.peak_during(lambda: None, memory.before_loading("cpu").ended())
    assert set(peak.absent.values()) == {"the model ran on the CPU"}
    assert nvml.asked == []


def test_the_watching_thread_ends_when_the_work_fails() -> None:
    before = threading.active_count()

    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        memory.peak_during(fail, memory.before_loading("cpu").ended())
    assert threading.active_count() == before


@pytest.mark.gpu
def test_on_a_gpu_the_peaks_are_those_of_known_tensors() -> None:
    """What torch's allocator held is what was made, to its 512 bytes; the driver's figures hold CUDA's context besides."""
    script = f"""
import json
from dataclasses import asdict
from quantbench.measuring.passes.memory import before_loading, peak_during
loading = before_loading("cuda:0")
import torch
kept = torch.ones({HOLDING}, dtype=torch.uint8, device="cuda:0")
loading = loading.ended()
def work():
    torch.ones({PASSING}, dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize()
print(json.dumps(asdict(peak_during(work, loading))))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)
    assert peak["load_device_allocated_bytes"] == HOLDING
    assert peak["device_allocated_bytes"] == HOLDING + PASSING
    assert peak["device_reserved_bytes"] >= peak["device_allocated_bytes"]
    assert peak["device_context_bytes"] is None or peak["device_context_bytes"] > 0
    for name in ("device_process_bytes", "device_used_bytes"):
        assert peak[name] is None or peak[name] >= peak["device_reserved_bytes"]
        assert (peak[name] is None) == bool(peak["absent"].get(name))
