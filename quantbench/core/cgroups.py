"""How much memory control groups (v2 and v1) leave this process: its own group and every group above it.

A container, a batch system or systemd may put a process several groups deep, and each level may set a limit: the lowest one
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
    """The files that are read here in one version of control groups, relative to a group's folder."""

    mount: str
    limit: str
    used: str
    cached: str
    """The line of ``memory.stat`` for file pages, which the kernel reclaims first."""
    kills: str


_V2 = _Files(mount="", limit="memory.max", used="memory.current", cached="inactive_file", kills="memory.events")
_V1 = _Files(
    mount="memory", limit="memory.limit_in_bytes", used="memory.usage_in_bytes", cached="total_inactive_file",
    kills="memory.oom_control",
)  # fmt: skip


def memory_limit(root: Path = ROOT, own: Path = OWN) -> int | None:
    """The lowest limit in bytes of this process's group and those above it; None if none of them has one."""
    return min((limit for _, _, limit in _limited(root, own)), default=None)


def memory_left(root: Path = ROOT, own: Path = OWN) -> int | None:
    """Bytes that can still be allocated under the tightest of these limits; None if there is no limit.

    Inactive file pages count as free: the kernel reclaims them before a limit is hit.
    """
    left = []
    for folder, files, limit in _limited(root, own):
        used = _number(folder / files.used)
        if used is not None:
            left.append(limit - max(used - _count(folder / "memory.stat", files.cached), 0))
    return max(min(left), 0) if left else None


def oom_kills(root: Path = ROOT, own: Path = OWN) -> int:
    """How often the kernel has OOM-killed a process in this process's group; v2 also counts the groups below it."""
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
    """The folders of this process's groups and of those above them, innermost first, the root last.

    In a container the path is often the host's and does not exist: the group itself is then mounted as the root.
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
    """The number in a file; None if the file does not exist or holds a word such as ``max``."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _count(path: Path, name: str) -> int:
    """The number on the line of that name; 0 if there is no such line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    found = (line.split() for line in lines)
    return next((int(words[1]) for words in found if len(words) == 2 and words[0] == name and words[1].isdigit()), 0)
