"""Facts about this machine: CPU, memory, instruction sets, GPU, versions, commit."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quantbench.core import cgroups
from quantbench.core.errors import UsageError
from quantbench.core.gpus import chosen_gpus, visible_gpus

_ISA_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve")
_OWN_SCOPES = ("local", "worktree")
"""Where git's settings come from that a repository brings along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The facts that must agree before two timings may be compared. ``memory_bytes`` is physical memory.

    ``gpus`` names the GPUs that this process may use.
    """

    cpu: str
    cpus: int
    memory_bytes: int
    isa: str
    system: str
    gpus: tuple[str, ...] = ()
    driver: str = ""

    @property
    def fingerprint(self) -> str:
        """A short hash of the hardware facts; memory is rounded to GiB because firmware reserves a varying part of it."""
        facts = {**asdict(self), "memory_bytes": round(self.memory_bytes / 2**30)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@cache
def describe() -> Machine:
    """The facts about this machine, read once."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    gpus = visible_gpus()
    return Machine(
        cpu=_cpuinfo(info, "model name") or platform.processor() or platform.machine(),
        cpus=available_cpus(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        isa=" ".join(flag for flag in _ISA_FLAGS if flag in (_cpuinfo(info, "flags") + _cpuinfo(info, "Features")).split()),
        system=f"{platform.system()} {platform.machine()}",
        gpus=tuple(gpu.name for gpu in gpus),
        driver=gpus[0].driver if gpus else "",
    )


def available_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that can still be allocated: the machine's free memory, or what the control groups leave, if that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    left = cgroups.memory_left()
    return free if left is None else min(free, left)


def memory_limit() -> int:
    """The most memory in bytes that a process can have here: physical memory, or the control groups' limit if that is less."""
    physical = describe().memory_bytes
    limit = cgroups.memory_limit()
    return physical if limit is None else min(physical, limit)


def gpu_memory() -> tuple[tuple[str, int | None], ...]:
    """Name and memory in bytes of each GPU that this process may use, in CUDA's order; None if NVML gives no figure."""
    return tuple((gpu.name, gpu.memory_bytes) for gpu in visible_gpus())


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions of the distributions ``packages``; those that are not installed are left out."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_torch() -> str:
    """The version of the installed torch if it names itself a CPU build; else empty."""
    number = versions(["torch"]).get("torch", "")
    return number if number.partition("+")[2].startswith("cpu") else ""


def require_device(device: str, *, torch: bool) -> None:
    """Raise UsageError if the requested CUDA device is not available; nothing falls back to the CPU.

    ``torch``: whether torch has to run there. It is not imported.
    """
    if device == "cpu":
        return
    chosen_gpus(device)
    if torch and (build := cpu_torch()):
        raise UsageError(
            f"device {device!r} was requested, but torch {build} is a CPU build; install a CUDA build of torch, or use cpu"
        )


def git_commit(folder: Path) -> str:
    """The commit checked out in ``folder``, with ``-dirty`` when files differ; empty outside a repository.

    No program is run that the repository itself names: it may have been unpacked from anywhere. Where only such a program (a
    filter) could compare files, it is ``-unchecked``.
    """
    if not (commit := _git(folder, "rev-parse", "--verify", "--short=12", "HEAD")):
        return ""
    filters = _git(folder, "config", "--show-scope", "--get-regexp", r"^filter\.").splitlines()
    if any(line.startswith(_OWN_SCOPES) for line in filters):
        return f"{commit}-unchecked"
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    """What git says, without hooks, monitors of the file system, downloads or locks; empty if it fails."""
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", *arguments]
    env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_ALLOW_PROTOCOL": "none"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=env)
    except OSError:  # not installed, or no further process may be started
        return ""
    return done.stdout.strip()


def _cpuinfo(text: str, key: str) -> str:
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
