"""What is made of NVML's answers: which boards, what was seen of their clocks, and why there may be nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from quantbench.core import boards as module
from quantbench.core.boards import Boards, open_boards
from quantbench.metrics.clocks import Clocks, ClockWatch, throttle_reasons

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Board, FakeNvml


def _seen(watch: ClockWatch) -> Clocks:
    found = watch.clocks()
    assert isinstance(found, Clocks)
    return found


@pytest.fixture
def boards(nvml: FakeNvml) -> list[Board]:
    """The two boards of the fake."""
    return list(nvml.boards.values())


@pytest.mark.parametrize(
    ("visible", "device", "uuids"),
    [
        (None, "cuda", ("GPU-aaaa-1", "GPU-bbbb-2")),
        (None, "cuda:1", ("GPU-bbbb-2",)),
        (None, "cuda:1+cuda:0", ("GPU-bbbb-2", "GPU-aaaa-1")),
        (None, "cpu+cuda:0", ("GPU-aaaa-1",)),
        ("1", "cuda:0", ("GPU-bbbb-2",)),
        ("1,0", "cuda:0", ("GPU-bbbb-2",)),
        ("GPU-bbbb-2", "cuda", ("GPU-bbbb-2",)),
    ],
)
@pytest.mark.usefixtures("nvml")
def test_boards_go_by_uuid_among_those_that_are_visible(
    visible: str | None, device: str, uuids: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = open_boards(device)
    assert isinstance(found, Boards)
    assert found.handles == uuids


@pytest.mark.parametrize("device", ["cpu", ""])
def test_on_the_cpu_there_are_no_boards_and_nobody_asks(device: str, nvml: FakeNvml) -> None:
    assert open_boards(device) == "the model ran on the CPU"
    assert ClockWatch(device).clocks() == "the model ran on the CPU"
    assert nvml.asked == []


@pytest.mark.usefixtures("nvml")
def test_a_gpu_that_is_hidden_is_no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "CUDA_VISIBLE_DEVICES=-1 hides 2 GPUs" in str(open_boards("cuda"))
    assert "CUDA_VISIBLE_DEVICES=-1 hides 2 GPUs" in str(ClockWatch("cuda").clocks())


def test_clocks_are_as_they_were_after_each_round(boards: list[Board]) -> None:
    """Of two boards the slower one and the hotter one count."""
    watch = ClockWatch("cuda")
    first, second = boards
    for sm_mhz, memory_mhz, temperature_c in ((1980, 2619, 40), (1500, 2619, 71), (1755, 1593, 70)):
        first.sm_mhz, second.memory_mhz, second.temperature_c = sm_mhz, memory_mhz, temperature_c
        watch.look()
    first.sm_mhz = 210  # idle again
    second.most_sm_mhz, second.limit_mw = 1830, 350_000
    found = _seen(watch)
    assert found.sm_mhz == (1980, 1500, 1755)
    assert found.memory_mhz == (2619, 2619, 1593)
    assert found.temperature_c == (40, 71, 70)
    assert (found.max_sm_mhz, found.power_limit_w) == (1830, 350.0)
    assert (found.throttling, dict(found.absent)) == ((), {})


def test_every_reason_that_was_there_after_a_round_is_kept(boards: list[Board]) -> None:
    watch = ClockWatch("cuda")
    first, second = boards
    watch.look()
    first.reasons = 0x4 | 0x1
    watch.look()
    first.reasons, second.reasons = 0x1, 0x40
    watch.look()
    second.reasons = 0
    watch.look()
    assert _seen(watch).throttling == ("sw_power_cap", "hw_thermal")


def test_a_board_that_is_not_in_use_does_not_count(boards: list[Board]) -> None:
    first, second = boards
    first.sm_mhz, first.reasons = 210, 0x8
    watch = ClockWatch("cuda:1")
    watch.look()
    assert _seen(watch).sm_mhz == (second.sm_mhz,)
    assert _seen(watch).throttling == ()


def test_the_time_held_back_is_that_of_the_rounds(boards: list[Board]) -> None:
    """The driver counts from when it was loaded; of two boards the one that lost more counts."""
    boards[0].capped_ns, boards[1].capped_ns = {0: 5_000_000_000, 1: 7_000_000_000}, {0: 4_000_000_000}
    watch = ClockWatch("cuda")
    watch.look()
    boards[0].capped_ns = {0: 5_250_000_000, 1: 7_000_000_000}
    found = _seen(watch)
    assert found.power_capped_s == pytest.approx(0.25)
    assert found.thermal_capped_s == 0


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (0, ()),
        (0x1 | 0x2 | 0x100, ()),
        (0x4 | 0x20, ("sw_power_cap", "sw_thermal")),
        (0x8 | 0x80, ("hw_slowdown", "hw_power_brake")),
        (0x10 | 0x2, ("sync_boost",)),
        (0x40 | 0x1, ("hw_thermal",)),
        (0x800, ("unknown_0x800",)),
        (0x4 | 0x3000, ("sw_power_cap", "unknown_0x3000")),
    ],
)
def test_idleness_and_clocks_set_on_purpose_are_no_throttling(bits: int, names: tuple[str, ...]) -> None:
    assert throttle_reasons(bits) == names


def test_the_bits_are_nvmls_own() -> None:
    import pynvml

    for suffix, names in {
        "SwPowerCap": ("sw_power_cap",), "HwSlowdown": ("hw_slowdown",), "SyncBoost": ("sync_boost",),
        "SwThermalSlowdown": ("sw_thermal",), "HwThermalSlowdown": ("hw_thermal",),
        "HwPowerBrakeSlowdown": ("hw_power_brake",), "GpuIdle": (), "ApplicationsClocksSetting": (), "DisplayClockSetting": (),
    }.items():  # fmt: skip
        assert throttle_reasons(getattr(pynvml, f"nvmlClocksEventReason{suffix}")) == names
    assert (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU) == (1, 2, 0)
    assert (pynvml.NVML_PERF_POLICY_POWER, pynvml.NVML_PERF_POLICY_THERMAL) == (0, 1)


def test_an_older_driver_is_asked_in_the_old_way(nvml: FakeNvml) -> None:
    nvml.refuses |= {"nvmlDeviceGetCurrentClocksEventReasons": "Function Not Found"}
    nvml.refuses |= {"nvmlDeviceGetTemperatureV": "Function Not Found"}
    next(iter(nvml.boards.values())).reasons = 0x20
    watch = ClockWatch("cuda")
    watch.look()
    assert (_seen(watch).throttling, _seen(watch).temperature_c) == (("sw_thermal",), (40,))


def test_what_a_board_does_not_tell_costs_that_figure_alone(nvml: FakeNvml) -> None:
    """And is not asked again after each round."""
    names = ("GetTemperatureV", "GetTemperature", "GetEnforcedPowerLimit", "GetViolationStatus")
    nvml.refuses |= {f"nvmlDevice{name}": "Not Supported" for name in names}
    watch = ClockWatch("cuda")
    watch.look()
    watch.look()
    found = _seen(watch)
    assert found.sm_mhz == (1980, 1980)
    assert (found.temperature_c, found.power_limit_w, found.power_capped_s, found.thermal_capped_s) == ((), None, None, None)
    assert set(found.absent) == {"temperature_c", "power_limit_w", "power_capped_s", "thermal_capped_s"}
    assert set(found.absent.values()) == {"NVML does not give it for this GPU: Not Supported"}
    assert nvml.asked.count("nvmlDeviceGetTemperature") == 1


def test_a_part_of_a_board_that_tells_no_clocks_at_all_has_a_reason(nvml: FakeNvml) -> None:
    refused = ("ClockInfo", "CurrentClocksEventReasons", "CurrentClocksThrottleReasons", "TemperatureV", "Temperature")
    nvml.refuses |= {f"nvmlDeviceGet{name}": "Not Supported" for name in refused}
    watch = ClockWatch("cuda")
    watch.look()
    assert watch.clocks() == "NVML gives no clocks for this GPU: NVML does not give it for this GPU: Not Supported"


def test_whether_this_process_has_loaded_cuda_is_read_from_its_mappings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = tmp_path / "maps"
    monkeypatch.setattr(module, "MAPS", maps)
    assert module.uses_cuda()
    maps.write_text("7f00-7f01 r-xp 00000000 08:01 1 /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1\n")
    assert not module.uses_cuda()
    maps.write_text("7f00-7f01 r-xp 00000000 08:01 1 /usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05\n")
    assert module.uses_cuda()


@pytest.mark.gpu
def test_on_a_gpu_asking_opens_no_cuda_and_says_what_nvidia_smi_says() -> None:
    """In a process of its own, which imports no torch for it."""
    script = """
import json, sys
from dataclasses import asdict
from quantbench.core.boards import open_boards, uses_cuda
from quantbench.metrics.clocks import ClockWatch
watch = ClockWatch("cuda:0")
watch.look()
boards = open_boards("cuda:0")
print(json.dumps([asdict(watch.clocks()), uses_cuda(), "torch" in sys.modules, boards.process_bytes(), boards.used_bytes()]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    clocks, opened, torch, own, used = json.loads(done.stdout)
    assert (opened, torch, own) == (False, False, None)
    assert used > 0
    assert len(clocks["sm_mhz"]) == 1
    assert 0 < clocks["sm_mhz"][0] <= clocks["max_sm_mhz"]
    assert clocks["memory_mhz"][0] > 0
    assert 0 < clocks["temperature_c"][0] < 120


@pytest.mark.gpu
def test_on_a_gpu_the_boards_are_those_that_torch_numbers_so() -> None:
    """In a process whose GPUs are numbered as they are in a session."""
    script = """
import json
from quantbench.core.gpus import number_gpus_by_bus, visible_gpus
number_gpus_by_bus()
import torch
found = [str(torch.cuda.get_device_properties(number).uuid) for number in range(torch.cuda.device_count())]
print(json.dumps([found, [gpu.uuid.removeprefix("GPU-") for gpu in visible_gpus()]]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    by_torch, by_driver = json.loads(done.stdout)
    assert by_torch == by_driver
    assert by_torch
