"""Facts about the machine, with a stand-in for NVML."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from quantbench.core import machine
from quantbench.core.errors import UsageError
from quantbench.core.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import FakeNvml

MACHINE = Machine(
    cpu="Xeon", cpus=2, memory_bytes=16 * 2**30, isa="avx2 fma", system="Linux x86_64", gpus=("H100",), driver="580"
)


@pytest.fixture
def fresh() -> Iterator[None]:
    """The facts are read anew, and forgotten afterwards."""
    machine.describe.cache_clear()
    yield
    machine.describe.cache_clear()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu", "EPYC"),
        ("cpus", 4),
        ("memory_bytes", 32 * 2**30),
        ("isa", "avx2"),
        ("system", "Linux aarch64"),
        ("gpus", ()),
        ("driver", "570"),
    ],
)
def test_the_fingerprint_changes_with_every_fact(name: str, value: object) -> None:
    assert replace(MACHINE, **{name: value}).fingerprint != MACHINE.fingerprint
    assert name in {each.name for each in fields(Machine)}


def test_the_fingerprint_looks_past_what_firmware_takes_of_memory() -> None:
    less = replace(MACHINE, memory_bytes=MACHINE.memory_bytes - 100 * 2**20)
    assert less.fingerprint == MACHINE.fingerprint


@pytest.mark.usefixtures("fresh")
def test_describe_agrees_with_psutil() -> None:
    found = machine.describe()
    assert found.memory_bytes == pytest.approx(psutil.virtual_memory().total, rel=0.01)
    assert found.cpus == len(psutil.Process().cpu_affinity())
    assert found.cpu


def test_available_cpus_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert machine.available_cpus() == 3


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("visible", "gpus", "driver"),
    [
        (None, ("NVIDIA H100 80GB HBM3", "NVIDIA A10"), "580.95.05"),
        ("1", ("NVIDIA A10",), "580.95.05"),
        ("", (), ""),
    ],
)
def test_a_machine_has_the_gpus_that_this_process_may_use(
    visible: str | None, gpus: tuple[str, ...], driver: str, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.boards["GPU-bbbb-2"].name = "NVIDIA A10"
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert (machine.describe().gpus, machine.describe().driver) == (gpus, driver)
    sizes = [memory for _, memory in machine.gpu_memory()]
    assert sizes == [80 * 2**30] * len(gpus)


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize(
    ("build", "cpu"), [("2.13.0+cpu", True), ("2.13.0+cpu.cxx11.abi", True), ("2.13.0+cu130", False), ("2.13.0", False)]
)
def test_a_build_of_torch_without_cuda_is_known_by_its_version(
    build: str, cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is no matter to a runtime that does without torch."""
    monkeypatch.setattr(machine, "version", lambda name: build if name == "torch" else "1.0")
    machine.require_device("cuda", torch=False)
    machine.require_device("cpu", torch=True)
    sentence = f"device 'cuda' was requested, but torch {build} is a CPU build; install a CUDA build of torch, or use cpu"
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$") if cpu else nullcontext():
        machine.require_device("cuda", torch=True)


@pytest.mark.parametrize(("limit", "expected"), [(2**20, 2**20), (None, None), (2**63, None)])
def test_memory_is_limited_by_the_control_groups_where_there_is_a_limit(
    limit: int | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.cgroups, "memory_limit", lambda: limit)
    assert machine.memory_limit() == (expected or machine.describe().memory_bytes)


def test_what_the_control_groups_leave_is_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.cgroups, "memory_left", lambda: 4096)
    assert machine.available_memory() == 4096


def test_versions_name_what_is_installed_and_leave_out_what_is_not() -> None:
    import pyarrow as pa

    found = machine.versions(["pyarrow", "pytest", "no-such-distribution"])
    assert found == {"pyarrow": pa.__version__, "pytest": pytest.__version__}


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_gits_and_says_when_files_differ(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    _git(tmp_path, "add", "file")
    _git(tmp_path, "commit", "-q", "-m", "first")
    _git(tmp_path, "tag", "-a", "v1", "-m", "a tag does not hide the commit")
    commit = _git(tmp_path, "rev-parse", "HEAD")[:12]
    assert machine.git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert machine.git_commit(tmp_path) == f"{commit}-dirty"


def test_outside_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.git_commit(tmp_path) == ""
    _git(tmp_path, "init", "-q")
    assert machine.git_commit(tmp_path) == ""


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.git_commit(tmp_path) == ""
