"""Content-addressed artifacts: made once, written beside their place and renamed into it, never read half-written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs

from quantbench.errors import ModelError, QuantbenchError
from quantbench.units import format_bytes

CACHE_VARIABLE = "QUANTBENCH_CACHE"
_CHUNK_BYTES = 1 << 22


def cache_root() -> Path:
    """The cache folder: ``QUANTBENCH_CACHE``, else the user's cache folder; absolute, since workers may start elsewhere."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_path("quantbench")).expanduser().absolute()


def digest(asked: Mapping[str, object]) -> str:
    """A short content address of what an artifact is made from."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]


def artifact(kind: str, asked: Mapping[str, object], make: Callable[[Path], None]) -> Path:
    """The folder of the artifact described by ``asked``, made by ``make(folder)`` if it is not there.

    ``make`` fills an empty folder that is renamed into place when it returns, so a reader sees all of it or nothing;
    ``asked.json`` in the folder says what it was made from. When two processes race, the first one wins.
    """
    place = cache_root() / kind / digest(asked)
    if place.is_dir():
        return place
    _make_folder(place.parent)
    partial = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        make(partial)
        (partial / "asked.json").write_text(json.dumps(asked, indent=1, sort_keys=True))
        try:
            partial.rename(place)
        except OSError:
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise ModelError where the disk of ``folder`` has not so many bytes free as ``what`` takes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"{what} takes {format_bytes(needed)} ({needed:,} bytes) and the cache's disk has {format_bytes(free)} "
            f"({free:,} bytes) free; set {CACHE_VARIABLE} to a folder on a larger one"
        )


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, remembered by path, size and time so that large checkpoints are read once."""
    stat = path.stat()
    note = cache_root() / "sha256" / digest({"path": str(path.resolve()), "size": stat.st_size, "mtime": stat.st_mtime_ns})
    if note.is_file():
        return note.read_text()
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            hasher.update(chunk)
    write_atomically(note, hasher.hexdigest().encode())
    return hasher.hexdigest()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QuantbenchError(f"the cache cannot be written at {folder} ({error.strerror}); set {CACHE_VARIABLE}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path``, flush to disk, rename: a reader sees the old file, the new one, or none."""
    _make_folder(path.parent)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
