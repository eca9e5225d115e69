"""What control groups leave of this machine's memory: this process's own group and every group that holds it, v2 and v1.

A container, a batch system or systemd may put a process several groups deep, and each of them may set a limit: the least
counts. Sources: the kernel's admin-guide/cgroup-v2 and cgroup-v1/memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """Where a version of control groups keeps what is read here, relative to a group's folder."""

    mount: str
    limit: str
    used: str
    cached: str
    """The line of ``memory.stat`` on file pages that the kernel takes back first."""
    kills: str


_V2 = _Files(mount="", limit="memory.max", used="memory.current", cached="inactive_file", kills="memory.events")
_V1 = _Files(
    mount="memory", limit="memory.limit_in_bytes", used="memory.usage_in_bytes", cached="total_inactive_file",
    kills="memory.oom_control",
)  # fmt: skip


def memory_limit(root: Path = ROOT, own: Path = OWN) -> int | None:
    """The least limit in bytes of this process's group and those around it; None where none of them has one."""
    return min((limit for _, _, limit in _limited(root, own)), default=None)


def memory_left(root: Path = ROOT, own: Path = OWN) -> int | None:
    """Bytes that may still be had under the tightest of these limits; None where there is none.

    Pages of files that were read and not used since count as free: the kernel takes them back before a limit is hit.
    """
    left = []
    for folder, files, limit in _limited(root, own):
        used = _number(folder / files.used)
        if used is not None:
            left.append(limit - max(used - _count(folder / "memory.stat", files.cached), 0))
    return max(min(left), 0) if left else None


def oom_kills(root: Path = ROOT, own: Path = OWN) -> int:
    """How often the kernel has killed a process of this process's group for lack of memory; groups below it count in v2."""
    innermost: dict[str, int] = {}
    for folder, files in _groups(root, own):
        if (folder / files.kills).is_file():
            innermost.setdefault(files.mount, _count(folder / files.kills, "oom_kill"))
    return sum(innermost.values())


def _limited(root: Path, own: Path) -> Iterator[tuple[Path, _Files, int]]:
    for folder, files in _groups(root, own):
        limit = _number(folder / files.limit)
        if limit is not None:
            yield folder, files, limit


def _groups(root: Path, own: Path) -> Iterator[tuple[Path, _Files]]:
    """The folders of this process's groups and of those around them, innermost first, the root last.

    In a container the path is often the host's and is not there: what is mounted as the root is then the group itself.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    paths = {_V2.mount: "/", _V1.mount: "/"}
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            paths[_V2.mount] = path
        elif "memory" in controllers.split(","):
            paths[_V1.mount] = path
    for files in (_V2, _V1):
        inside = PurePosixPath(paths[files.mount].lstrip("/"))
        parts = () if ".." in inside.parts else (inside, *inside.parents)
        for part in dict.fromkeys((*parts, PurePosixPath())):
            yield root / files.mount / part, files


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no such file, or a word such as ``max``."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _count(path: Path, name: str) -> int:
    """The number on the line of that name; 0 where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    found = (line.split() for line in lines)
    return next((int(words[1]) for words in found if len(words) == 2 and words[0] == name and words[1].isdigit()), 0)
