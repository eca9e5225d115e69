"""Content-addressed artifacts: made once, written beside their place and renamed into it, never read half-written."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import platformdirs

from quantbench.core.checksums import CHECKSUMS, damage, say, seal
from quantbench.core.errors import ModelError, QuantbenchError
from quantbench.core.identity import HashedFile, identify, sha256_of
from quantbench.core.outside import expanded
from quantbench.core.scratch import SET_ASIDE, owned, partial_name
from quantbench.core.units import format_bytes

CACHE_VARIABLE = "QUANTBENCH_CACHE"
ASKED = "asked.json"
OWN_FILES = (ASKED, CHECKSUMS)
"""Files that quantbench adds to an artifact's folder, besides what its maker put there."""

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_SETTLED_NS = 2 * 10**9
"""File times advance in steps of milliseconds: a file just written may be written again without its times changing."""


def cache_root() -> Path:
    """The cache folder: ``QUANTBENCH_CACHE``, else the user's cache folder; absolute, as workers may start elsewhere."""
    return expanded(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_path("quantbench")).absolute()


def digest(asked: Mapping[str, object]) -> str:
    """A short content address of what an artifact is made from."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]


def artifact(kind: str, asked: Mapping[str, object], make: Callable[[Path], None]) -> Path:
    """The folder of the artifact described by ``asked``, made by ``make(folder)`` if it does not exist.

    ``make`` fills an empty folder that is renamed into place when it returns, so a reader sees all of it or nothing.
    ``asked.json`` in the folder says what it was made from, and checksums cover all its files. They are verified before use:
    a damaged artifact is set aside, reported, and made again. When two processes race, the first one wins.
    """
    place = cache_root() / kind / digest(asked)
    if place.is_dir() and not _set_aside_if_damaged(place):
        return place
    _make_folder(place.parent)
    try:
        with folder_beside(place) as partial:
            make(partial)
            (partial / ASKED).write_text(json.dumps(asked, indent=1, sort_keys=True))
            seal(partial)
    except OSError as error:
        if place.is_dir():
            return place
        if error.errno in _FORBIDDEN and str(error.filename).startswith(str(place.parent)):
            raise _unwritable(place.parent, error) from error
        raise
    return place


@contextmanager
def folder_beside(place: Path) -> Iterator[Path]:
    """A new folder, locked while it is filled and renamed to ``place`` at the end: a reader sees all of it or nothing.

    It is removed if that fails. OSError if ``place`` exists by then and is not an empty folder.
    """
    new = place.with_name(partial_name(place.name))
    new.mkdir()  # with the umask's permissions, unlike mkdtemp: the cache may be shared with other users
    with owned(new) as partial:
        try:
            yield partial
            _follow_umask(partial)
            partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _follow_umask(folder: Path) -> None:
    """Give all that is in ``folder`` its own permissions: safetensors makes files that only their owner can read."""
    allowed = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(allowed if path.is_dir() else allowed & (path.stat().st_mode | 0o666))


def made_by(*modules: str) -> str:
    """A hash of the source of the modules that make an artifact, so that a changed maker makes it again."""
    hasher = hashlib.sha256()
    for name in sorted(modules):
        spec = find_spec(name)
        assert spec
        assert spec.origin, name
        hasher.update(f"{name} {hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()}\n".encode())
    return hasher.hexdigest()[:24]


def _set_aside_if_damaged(place: Path) -> bool:
    """Whether the entry was damaged and has been moved out of the way."""
    if not damage(place):
        return False
    aside = place.with_name(f"{SET_ASIDE}{place.name}-{uuid4().hex[:8]}")
    try:
        with (place.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            why = damage(place)  # another process may have made it again meanwhile
            if not why:
                return False
            place.rename(aside)
            os.utime(aside)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise QuantbenchError(f"{place} is damaged and cannot be set aside ({error.strerror}); remove it") from error
    say(f"{place.parent.name} {place.name} in the cache was damaged ({why}); it was set aside as {aside.name} and made again")
    return True


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise ModelError if the disk of ``folder`` has fewer than ``needed`` bytes free; ``what`` names what takes them."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"{what} takes {format_bytes(needed)} ({needed:,} bytes) and the cache's disk has only {format_bytes(free)} "
            f"({free:,} bytes) free; set {CACHE_VARIABLE} to a folder on a larger disk"
        )


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, cached by the file's identity so that a large checkpoint is read only once."""
    return hashed(path).sha256


def hashed(path: Path) -> HashedFile:
    """The file's identity and hash; ModelError if it changes while it is read."""
    identity = identify(path)
    asked = {"path": str(path.resolve()), "identity": list(identity)}
    known = recall("sha256", asked)
    if isinstance(known, str):
        return HashedFile(str(path), known, identity)
    found = sha256_of(path)
    if identify(path) != identity:
        raise ModelError(f"{path} changed while it was read; wait until it is written completely, or use a copy")
    if time.time_ns() - max(identity.ctime_ns, identity.mtime_ns) > _SETTLED_NS:
        remember("sha256", asked, found)
    return HashedFile(str(path), found, identity)


def remember(kind: str, asked: Mapping[str, object], value: object) -> None:
    """Keep a small value in the cache, with a checksum.

    Where the cache cannot be written, or is full, it is not kept: that is reported when something needs it that is large.
    """
    body = {"asked": dict(asked), "value": value}
    note = _note(kind, asked)
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, json.dumps({**body, "sha256": _sum(body)}))


def recall(kind: str, asked: Mapping[str, object]) -> object | None:
    """The remembered value; None if there is none, or if its checksum does not match."""
    try:
        body = json.loads(_note(kind, asked).read_text())
        written = body.pop("sha256")
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
    value: object = body.get("value")
    return value if written == _sum(body) and body.get("asked") == dict(asked) else None


def _note(kind: str, asked: Mapping[str, object]) -> Path:
    return cache_root() / kind / f"{digest(asked)}.json"


def _sum(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> QuantbenchError:
    return QuantbenchError(
        f"the cache cannot be written at {folder} ({error.strerror}); set {CACHE_VARIABLE} to a writable folder"
    )


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Write text beside ``path``, flush it to disk, rename it: a reader sees the old file or the new one, never a part.

    OSError names ``path``, also where the disk is full.
    """
    partial = path.with_name(partial_name(path.name))
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.writelines(piece.encode() for piece in ([text] if isinstance(text, str) else text))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):  # the kernel names no file where a write fails
            error.filename = error.filename or str(path)
        raise
