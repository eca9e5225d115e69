"""Which GPUs there are and which this process may use, with stand-ins for nvidia-smi and NVML."""

from __future__ import annotations

import os
import re
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core import gpus
from quantbench.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAID = (
    "NVIDIA H100, 580.95.05, 81559, GPU-aaaa-1",
    "NVIDIA GB10, 580.95.05, [N/A], GPU-bbbb-2",
    "NVIDIA A10, 580.95.05, 23028, GPU-aacc-3",
)
LISTED = """GPU 0: NVIDIA H100 (UUID: GPU-aaaa-1)
  MIG 1g.10gb     Device  0: (UUID: MIG-0001)
  MIG 3g.40gb     Device  1: (UUID: MIG-0002)
GPU 1: NVIDIA GB10 (UUID: GPU-bbbb-2)"""


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a script of that text in nvidia-smi's place."""

    def put(script: str) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return put


@pytest.fixture
def three(nvidia_smi: Callable[[str], None]) -> None:
    """Three GPUs, the first of them in parts."""
    rows = "\n".join(SAID)
    nvidia_smi(f"if [ \"$1\" = -L ]; then cat <<'.'\n{LISTED}\n.\nelse cat <<'.'\n{rows}\n.\nfi")


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
    said = [row.split(", ") for row in SAID]
    sizes = (81559 * 2**20, None, 23028 * 2**20)
    assert found == [(said[number][0], said[number][1], sizes[number], said[number][3]) for number in expected]


@pytest.mark.usefixtures("three")
def test_a_part_of_a_gpu_is_a_gpu_of_unknown_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-0002")
    (part,) = gpus.visible_gpus()
    assert (part.name, part.uuid, part.memory_bytes) == ("NVIDIA H100 MIG 3g.40gb", "MIG-0002", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-9")
    assert gpus.visible_gpus() == ()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'No devices were found'; exit 6", "nvidia-smi lists no GPU (No devices were found)"),
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "nvidia-smi lists no GPU (Failed to initialize NVML: Driver/library version mismatch)",
        ),
        ("echo 'it could not reach the driver.' >&2; exit 9", "nvidia-smi lists no GPU (it could not reach the driver)"),
        ("exit 0", "nvidia-smi lists no GPU"),
    ],
)
def test_a_machine_without_a_working_gpu_says_why(script: str, why: str, nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi(script)
    assert gpus.visible_gpus() == ()
    assert gpus.no_gpu() == why


class FakeError(Exception):
    """Stands for pynvml's."""


def _pynvml(names: tuple[str, ...], **other: Any) -> SimpleNamespace:
    """Stands for pynvml with these boards."""
    functions: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: len(names),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: names[handle],
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=(handle + 1) * 2**30),
        "nvmlSystemGetDriverVersion": lambda: "580.95.05",
    }
    return SimpleNamespace(NVMLError=FakeError, **{**functions, **other})


def _refuse(*_: Any) -> Any:
    raise FakeError("Not Supported")


@pytest.fixture
def no_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no nvidia-smi."""
    monkeypatch.setattr("quantbench.core.gpus.shutil.which", lambda _: None)


@pytest.mark.usefixtures("no_tool")
def test_without_the_tool_the_drivers_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that has the one and not the other."""
    monkeypatch.setitem(sys.modules, "pynvml", _pynvml(("A", "B")))  # type: ignore[arg-type]
    expected = [("A", "GPU-0", 2**30, "580.95.05"), ("B", "GPU-1", 2**31, "580.95.05")]
    assert [(gpu.name, gpu.uuid, gpu.memory_bytes, gpu.driver) for gpu in gpus.visible_gpus()] == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.name for gpu in gpus.visible_gpus()] == ["B"]
    monkeypatch.setitem(sys.modules, "pynvml", _pynvml(("A",), nvmlDeviceGetMemoryInfo=_refuse))  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [gpu.memory_bytes for gpu in gpus.visible_gpus()] == [None]


@pytest.mark.usefixtures("no_tool")
@pytest.mark.parametrize(
    ("library", "why"),
    [
        (None, "no GPU was found: there is no nvidia-smi, and NVML is read through nvidia-ml-py, which is not installed"),
        (
            _pynvml((), nvmlInit=_refuse),
            "no GPU was found: there is no nvidia-smi, and NVML cannot be opened: Not Supported",
        ),
        (_pynvml((), nvmlDeviceGetCount=_refuse), "NVML refuses to list GPUs (Not Supported)"),
        (_pynvml(()), "NVML lists no GPU"),
    ],
    ids=["no library", "no driver", "refused", "none"],
)
def test_without_either_it_says_so(library: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert gpus.visible_gpus() == ()
    assert gpus.no_gpu() == why


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cuda", None, ["NVIDIA H100", "NVIDIA GB10", "NVIDIA A10"]),
        ("cuda:2", None, ["NVIDIA A10"]),
        ("cuda", "2", ["NVIDIA A10"]),
        ("cuda:1", "2,0", ["NVIDIA H100"]),
        ("cuda:3", None, "there are no more GPUs than cuda:0 (NVIDIA H100), cuda:1 (NVIDIA GB10), cuda:2 (NVIDIA A10)"),
        ("cuda:1", "2", "there are no more GPUs than cuda:0 (NVIDIA A10) with CUDA_VISIBLE_DEVICES=2; use one of these"),
        ("cuda", "", "CUDA_VISIBLE_DEVICES= hides 3 GPUs; use cpu, or run where a GPU is to be had"),
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
        with pytest.raises(UsageError, match=f"^device {device!r} was asked for and {re.escape(expected)}"):
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
