"""Full disks in one sentence: which of the places that quantbench writes to has no room left, and how to mend it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from quantbench.core.cache import CACHE_VARIABLE, cache_root
from quantbench.core.units import format_bytes

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_ROOM_BYTES = 2**16
"""With less than this free, a small file may not fit any more."""


def means_full(error: BaseException) -> bool:
    """Whether an error, perhaps a library's own, says that a disk is full."""
    return (isinstance(error, OSError) and error.errno in _FULL) or os.strerror(errno.ENOSPC) in str(error)


def full(job: Path | None = None) -> str:
    """A sentence if the disk of the folder ``job`` (default: that of temporary files) or that of the cache has no room left.

    Empty if both have room.
    """
    name, free = _fullest(job or _temporary())
    return _sentence(name, free) if free < _NO_ROOM_BYTES else ""


def which_full(job: Path, error: BaseException) -> str:
    """A sentence about an error that means a full disk: the place that it names, or else the one with the least room.

    Some room may be free again by now: what is half-written in the cache is removed at once.
    """
    named = str(getattr(error, "filename", None) or "")
    for name in _places(job):
        if named.startswith(str(name)):
            return _sentence(name, _free(name))
    return _sentence(*_fullest(job))


def _sentence(name: Path, free: float) -> str:
    if name == cache_root():
        kind, mend = "the cache", f"set {CACHE_VARIABLE} to"
    elif name.is_relative_to(_temporary()):
        name, kind, mend = _temporary(), "temporary files", "set TMPDIR to"
    else:
        kind, mend = "the jobs that are kept", "give --keep-jobs"
    return f"there is no room left for {kind} in {name} ({format_bytes(free)} free); {mend} a folder on a larger disk"


def _temporary() -> Path:
    """The folder for temporary files; the usual one where Python finds none that has room."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return Path(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108  # nosec B108 - nothing is written there


def _places(job: Path) -> tuple[Path, Path]:
    return cache_root(), job.absolute()


def _fullest(job: Path) -> tuple[Path, float]:
    free = {name: _free(name) for name in _places(job)}
    fullest = min(free, key=free.__getitem__)
    return fullest, free[fullest]


def _free(folder: Path) -> float:
    """Bytes free for this user on the disk of a folder, or of the nearest one above it that exists."""
    for each in (folder, *folder.parents):
        with suppress(OSError):
            return shutil.disk_usage(each).free
    return float("inf")
