"""Folders that live as long as their owner: locked while it uses them, removed by the next run if it was killed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from quantbench.core.errors import QuantbenchError
from quantbench.core.units import format_bytes

PREFIX = "quantbench-"
SET_ASIDE = ".damaged-"
"""The prefix of a damaged cache entry that was moved out of the way."""

_HELD = "-held"
"""The end of the name of a folder that was locked before it got this name: if it is not locked, its owner is dead."""

_OURS = re.compile(r"quantbench-[0-9a-f]{8}-[a-z0-9_]{8}(-held)?|\.(damaged-)?[0-9a-f]{24}(\.json)?-[a-z0-9_-]+")
"""Names that only this module makes, so that no other folder is ever removed."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DAY_S = 86_400
_UNLOCKED_S = 60
"""A file is not locked, and a folder not right when it is created; one this old and still unlocked has lost its owner."""

_SET_ASIDE_S = 7 * _DAY_S


class Swept(NamedTuple):
    """What was removed: how many folders and files, and their bytes."""

    places: int
    size: int

    @property
    def sentences(self) -> list[str]:
        """One sentence on what was removed; none if nothing was."""
        return [f"removed leftovers of killed runs: {format_bytes(self.size)} in {self.places} places"] if self.places else []


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A private folder, removed at the end; in the folder for temporary files by default.

    QuantbenchError where none can be made.
    """
    try:
        new = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{_kernel()}-", dir=parent))
    except OSError as error:
        raise QuantbenchError(
            f"no folder for temporary files can be made ({error}); set TMPDIR to a folder that can be written and has room"
        ) from error
    with owned(new) as folder:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def owned(new: Path) -> Iterator[Path]:
    """A folder that was just made, under another name, which it gets once it is locked; ``sweep`` knows by it who is dead."""
    with held(new):
        yield new.rename(new.with_name(new.name + _HELD))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a folder until the end of the block, or the death of this process; without effect on a disk without locks."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def partial_name(name: str) -> str:
    """A temporary name beside the final ``name``; it identifies the kernel under which its owner runs."""
    return f".{name}-{_kernel()}-{uuid4().hex[:8]}"


def sweep(cache: Path) -> Swept:
    """Remove what killed owners left in the cache and among temporary files, and damaged entries set aside over a week ago.

    Locked folders stay. A folder whose owner may run under another kernel (a shared disk, the machine before a reboot), or
    which cannot be locked, must have been untouched for a day.
    """
    places = [*Path(tempfile.gettempdir()).glob(f"{PREFIX}*"), *cache.glob(f"{PREFIX}*"), *cache.glob("*/.*-*")]
    candidates = [path for path in places if _OURS.fullmatch(path.name)]
    removed = [size for path in candidates if (size := _swept(path)) is not None]
    return Swept(len(removed), sum(removed))


def _swept(path: Path) -> int | None:
    """Bytes freed; None if the owner may still be alive, or the file belongs to another user."""
    try:
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            return None
        inside = [each.lstat() for each in path.rglob("*")] if path.is_dir() else []
        newest = max((each.st_mtime for each in (path.lstat(), *inside)), default=0.0)
        patience = _patience(path.name)
        if patience and time.time() - newest < patience:
            return None
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # already gone, or not readable
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    except OSError:  # no locks on this disk: a day without a change has to suffice
        free = time.time() - newest > _DAY_S
    finally:
        os.close(handle)
    if not free:
        return None
    size = sum(each.st_size for each in (path.lstat(), *inside))
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return size


def _patience(name: str) -> float:
    """Seconds without a write after which it may be removed."""
    if name.startswith(SET_ASIDE):
        return _SET_ASIDE_S
    if f"-{_kernel()}-" not in name:
        return _DAY_S
    return 0 if name.endswith(_HELD) else _UNLOCKED_S


def _kernel() -> str:
    """Identifies this kernel since boot: a lock that is free here says nothing about a process on another machine."""
    name = _BOOT_ID.read_text() if _BOOT_ID.exists() else platform.node()
    return hashlib.sha256(name.encode()).hexdigest()[:8]
