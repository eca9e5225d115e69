"""Which GPUs there are and which this process may use, with a stand-in for NVML."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from quantbench.core import gpus
from quantbench.core.errors import UsageError

if TYPE_CHECKING:
    from conftest import FakeNvml

MIB = 2**20
SAID = (
    ("NVIDIA H100", "580.95.05", 81559 * MIB, "GPU-aaaa-1"),
    ("NVIDIA GB10", "580.95.05", None, "GPU-bbbb-2"),
    ("NVIDIA A10", "580.95.05", 23028 * MIB, "GPU-aacc-3"),
)
PARTS = (("NVIDIA H100 MIG 1g.10gb", 9856 * MIB, "MIG-0001"), ("NVIDIA H100 MIG 3g.40gb", 40448 * MIB, "MIG-0002"))


@pytest.fixture
def three(nvml: FakeNvml) -> FakeNvml:
    """Three GPUs, the first of them in parts."""
    board = type(next(iter(nvml.boards.values())))
    nvml.boards = {uuid: board(name=name, total=total) for name, _, total, uuid in SAID}
    nvml.boards["GPU-aaaa-1"].parts = {uuid: board(name=name, total=total) for name, total, uuid in PARTS}
    return nvml


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, (0, 1, 2)), ("2,0", (2, 0)), ("1", (1,)), (" 1 , 2", (1, 2)), ("GPU-bbbb-2", (1,)), ("GPU-aac", (2,)),
        ("GPU-aa", ()), ("2,7,0", (2,)), ("2,,0", (2,)), ("", ()), ("-1", ()), ("none", ()), ("0,0", ()), ("1,GPU-bbbb-2", ()),
    ],
)  # fmt: skip
def test_cuda_visible_devices_is_followed(
    visible: str | None, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA does: it ends at the first that it cannot find, or that is more than one, and takes none where one is twice."""
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = [(gpu.name, gpu.driver, gpu.memory_bytes, gpu.uuid) for gpu in gpus.visible_gpus()]
    assert found == [SAID[number] for number in expected]


def test_a_part_of_a_gpu_is_a_gpu_with_its_own_memory(three: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-0002,MIG-0001")
    found = [(part.name, part.memory_bytes, part.uuid) for part in gpus.visible_gpus()]
    assert found == [PARTS[1], PARTS[0]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-9")
    assert gpus.visible_gpus() == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-0002")
    three.refuses["nvmlDeviceGetMaxMigDeviceCount"] = "Function Not Found"
    assert gpus.visible_gpus() == ()
    assert gpus.no_gpu() == "CUDA_VISIBLE_DEVICES=MIG-0002 hides 3 GPUs"


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("nvmlInit", "no GPU was found: NVML cannot be opened: Driver/library version mismatch"),
        ("nvmlDeviceGetCount", "NVML cannot list GPUs (Driver/library version mismatch)"),
        (None, "NVML lists no GPU"),
    ],
)
def test_a_machine_without_a_working_gpu_says_why(
    call: str | None, why: str, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    if call:
        nvml.refuses[call] = "Driver/library version mismatch"
    else:
        nvml.boards.clear()
    assert gpus.visible_gpus() == ()
    assert gpus.no_gpu() == why
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-0002")
    assert gpus.visible_gpus() == ()


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cuda", None, ["NVIDIA H100", "NVIDIA GB10", "NVIDIA A10"]),
        ("cuda:2", None, ["NVIDIA A10"]),
        ("cuda", "2", ["NVIDIA A10"]),
        ("cuda:1", "2,0", ["NVIDIA H100"]),
        ("cuda:3", None, "the only GPUs are cuda:0 (NVIDIA H100), cuda:1 (NVIDIA GB10), cuda:2 (NVIDIA A10)"),
        ("cuda:1", "2", "the only GPUs are cuda:0 (NVIDIA A10) with CUDA_VISIBLE_DEVICES=2; use one of these"),
        ("cuda", "", "CUDA_VISIBLE_DEVICES= hides 3 GPUs; use cpu, or run on a machine with a GPU"),
        ("cuda:0", "-1", "CUDA_VISIBLE_DEVICES=-1 hides 3 GPUs; use cpu,"),
    ],
)
def test_a_device_is_all_visible_gpus_or_one_of_them(
    device: str, visible: str | None, expected: list[str] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if isinstance(expected, list):
        assert [gpu.name for gpu in gpus.chosen_gpus(device)] == expected
    else:
        with pytest.raises(UsageError, match=f"^device {device!r} was requested, but {re.escape(expected)}"):
            gpus.chosen_gpus(device)


@pytest.mark.usefixtures("three")
def test_gpus_of_several_kinds_take_an_order_that_others_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    with pytest.raises(UsageError, match="CUDA_DEVICE_ORDER=FASTEST_FIRST numbers GPUs in an order that only CUDA knows; set"):
        gpus.chosen_gpus("cuda:1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb-2")
    assert [gpu.name for gpu in gpus.chosen_gpus("cuda:0")] == ["NVIDIA GB10"]


@pytest.mark.parametrize(("before", "after"), [(None, "PCI_BUS_ID"), ("FASTEST_FIRST", "FASTEST_FIRST")])
def test_cuda_is_told_to_count_as_nvidia_smi_does_unless_it_was_told_otherwise(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", {} if before is None else {"CUDA_DEVICE_ORDER": before})
        gpus.number_gpus_by_bus()
        assert os.environ["CUDA_DEVICE_ORDER"] == after


@pytest.mark.usefixtures("three")
def test_where_there_is_a_gpu_nothing_is_amiss() -> None:
    assert gpus.no_gpu() == ""
