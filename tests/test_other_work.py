"""What others did while a run was timed: made-up trees of /proc with known answers, and this very machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from quantbench.core import other_work
from quantbench.core.boards import OthersOnGpu
from quantbench.core.other_work import OtherWorkWatch, this_process

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Board, FakeNvml
    from quantbench.core.other_work import OtherWork

OWN = os.getpid()
ROOT, SERVER, WORKER, HELPER, STRANGER = 1_000_001, 1_000_002, OWN, 1_000_003, 1_000_004


@dataclass
class Kernel:
    """Writes what Linux would: ticks of CPUs by field, and of processes (parent, ticks, those of ended children)."""

    proc: Path
    clock_s: float = 100.0
    cpus: dict[int, list[int]] = field(default_factory=dict)
    processes: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for cpu in (0, 1, 2):
            self.cpus[cpu] = [1000, 0, 200, 50_000, 30, 5, 5, 7, 900, 0]
        self.processes = {
            1: (0, 50, 10_000), ROOT: (1, 500, 800), SERVER: (ROOT, 300, 900), WORKER: (SERVER, 20, 0), STRANGER: (1, 777, 0),
        }  # fmt: skip
        self.write()

    def write(self) -> None:
        lines = [f"cpu{cpu} {' '.join(map(str, numbers))}" for cpu, numbers in self.cpus.items()]
        (self.proc / "stat").write_text("\n".join(["cpu  1 1 1 1 1 1 1 1 1 1", *lines, "intr 5 5"]) + "\n")
        for old in self.proc.glob("[0-9]*"):
            (old / "stat").unlink()
            old.rmdir()
        for pid, (parent, ticks, ended) in self.processes.items():
            (self.proc / str(pid)).mkdir()
            times = f"{ticks - ticks // 3} {ticks // 3} {ended - ended // 4} {ended // 4}"
            text = f"{pid} (odd) name ) S {parent} 1 1 0 -1 0 1 2 3 4 {times} 20 0 1 0 {pid + 5} 0 0\n"
            (self.proc / str(pid) / "stat").write_text(text)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A machine whose CPUs 0 and 1 this process may use, and a clock that moves when it is told to."""
    made = Kernel(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(other_work.time, "perf_counter", lambda: made.clock_s)
    return made


def watch(kernel: Kernel, root: tuple[int, int] | None = (ROOT, ROOT + 5), **more: bool) -> OtherWorkWatch:
    return OtherWorkWatch(root, proc=kernel.proc, **more)


def after_a_second(kernel: Kernel, watching: OtherWorkWatch, *, work: int, steal: int = 0) -> OtherWork:
    """The end of a window of 2 s in which these CPUs did ``work`` ticks, spread over kinds and CPUs, of 400."""
    kernel.clock_s += 2.0
    for index, kind in enumerate((0, 1, 2, 5, 6)):
        kernel.cpus[index % 2][kind] += work // 5
    kernel.cpus[1][7] += steal
    kernel.cpus[2][0] += 200  # a CPU that is not ours is nobody's business
    kernel.write()
    return watching.ended()


def test_others_are_what_the_cpus_worked_less_the_whole_tree_of_the_run(kernel: Kernel) -> None:
    """In the window a worker ends, its helper starts, and a stranger takes 100 of 400 ticks."""
    watching = watch(kernel)
    del kernel.processes[WORKER]
    kernel.processes[SERVER] = (ROOT, 310, 900 + 20 + 60)  # the worker's 20 from before and 60 from now
    kernel.processes[HELPER] = (SERVER, 30, 0)
    kernel.processes[STRANGER] = (1, 877, 0)
    seen = after_a_second(kernel, watching, work=200, steal=8)
    assert seen.others_cpu == pytest.approx((200 - 10 - 60 - 30) / 400)
    assert seen.steal == pytest.approx(8 / 400)
    assert (seen.window_s, seen.cpus, seen.tick_share) == (2.0, 2, 1 / 400)


def test_rounding_of_ticks_never_makes_a_share_negative(kernel: Kernel) -> None:
    watching = watch(kernel)
    kernel.processes[WORKER] = (SERVER, 20 + 399, 0)
    assert after_a_second(kernel, watching, work=395).others_cpu == 0.0


@pytest.mark.parametrize("root", [None, (ROOT, 1), (999_999, 5), (STRANGER, STRANGER + 5)])
def test_without_its_root_a_job_counts_itself_as_the_run(root: tuple[int, int] | None, kernel: Kernel) -> None:
    """The id was given to another process, nobody has it, or it is somebody who did not start this."""
    watching = watch(kernel, root)
    kernel.processes[WORKER] = (SERVER, 20 + 100, 0)
    kernel.processes[SERVER] = (ROOT, 300 + 60, 900)
    assert after_a_second(kernel, watching, work=160).others_cpu == pytest.approx(60 / 400)


def test_of_somebody_elses_server_only_steal_can_be_told(kernel: Kernel) -> None:
    seen = after_a_second(kernel, watch(kernel, own_server=False), work=100, steal=40)
    assert (seen.others_cpu, seen.steal) == (None, 0.1)
    assert "did not start the server" in seen.absent["others_cpu"]


def test_a_window_of_a_few_ticks_tells_nothing_and_says_so(kernel: Kernel) -> None:
    watching = watch(kernel)
    kernel.clock_s += 0.05
    seen = watching.ended()
    assert (seen.others_cpu, seen.steal) == (None, None)
    assert "0.05 s were timed, too short" in seen.absent["others_cpu"]


def test_half_a_cpu_is_what_makes_way_and_an_answer_stands_until_ticks_tell_more(kernel: Kernel) -> None:
    watching = watch(kernel)
    after_a_second(kernel, watching, work=95)
    assert not watching.crowded()
    after_a_second(kernel, watching, work=105)
    assert watching.crowded()
    kernel.clock_s += 0.01
    assert watching.crowded()
    kernel.clock_s += 2
    assert not watching.crowded()


@pytest.mark.parametrize("content", [None, "", "cpu 1 2 3\n", "cpu0 1 2\n", "cpu0 a b c d e f g h\n"])
def test_where_the_kernel_does_not_tell_shares_are_absent(content: str | None, kernel: Kernel) -> None:
    """As on macOS, where there is no such file."""
    (kernel.proc / "stat").unlink()
    if content is not None:
        (kernel.proc / "stat").write_text(content)
    seen = watch(kernel).ended()
    assert (seen.others_cpu, seen.steal) == (None, None)
    assert "the kernel does not say" in seen.absent["others_cpu"]
    assert this_process(kernel.proc / "nowhere") is None


def test_this_machine_tells_work_of_others_from_own() -> None:
    """Own work of a child counts as own; only that something is told can be asserted of a machine with others on it."""
    watching = OtherWorkWatch(this_process())
    spin = "import time\nend = time.time() + 0.3\nwhile time.time() < end: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    seen = watching.ended()
    assert not {"others_cpu", "steal"} & set(seen.absent)
    assert seen.others_cpu is not None
    assert 0 <= seen.others_cpu <= 1
    assert seen.window_s >= 0.3
    assert seen.others_gpu is None
    assert seen.absent["others_gpu"] == "the model ran on the CPU"


@pytest.fixture
def boards(nvml: FakeNvml) -> list[Board]:
    """Two boards on which this process is listed."""
    found = list(nvml.boards.values())
    for board in found:
        board.processes = [(OWN, 1), (STRANGER, 1)]
    return found


def test_use_of_the_gpu_by_others_is_a_mean_over_looks_of_the_busiest_board(boards: list[Board]) -> None:
    looking = OthersOnGpu("cuda")
    for first, second in (({OWN: 90, STRANGER: 10}, {}), ({OWN: 40}, {STRANGER: 30, 5: 20}), ({}, {})):
        boards[0].used_by, boards[1].used_by = first, second
        looking.look(lambda: {OWN})
    assert looking.share() == pytest.approx((0.1 + 0.5 + 0.0) / 3)


def test_in_a_container_whose_process_ids_are_others_nothing_is_told(boards: list[Board]) -> None:
    boards[0].processes, boards[1].processes = [(STRANGER, 1)], []
    looking = OthersOnGpu("cuda")
    looking.look(lambda: {OWN})
    assert "NVML lists no process of this run" in str(looking.share())


def test_a_refusal_of_nvml_is_the_reason(nvml: FakeNvml, boards: list[Board]) -> None:
    nvml.refuses["nvmlDeviceGetProcessUtilization"] = "Not Supported"
    watching = OtherWorkWatch(device="cuda")
    watching.look()
    time.sleep(0.12)
    seen = watching.ended()
    assert seen.others_gpu is None
    assert seen.absent["others_gpu"] == "NVML does not say which processes use this GPU: Not Supported"
    assert OthersOnGpu("cuda").share() == "use of the GPU was not sampled while this was timed"


def test_a_machine_that_is_busy_already_is_told_so(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def others(seconds: float) -> None:
        kernel.clock_s += seconds
        kernel.cpus[0][0] += round(100 * seconds)
        kernel.processes[STRANGER] = (1, 777 + round(100 * seconds), 0)
        kernel.write()

    monkeypatch.setattr(other_work.time, "sleep", others)
    assert other_work.busy_now(kernel.proc) == "other processes took 48% of the CPU time"
    monkeypatch.setattr(other_work.time, "sleep", lambda seconds: setattr(kernel, "clock_s", kernel.clock_s + seconds))
    assert other_work.busy_now(kernel.proc) == ""
