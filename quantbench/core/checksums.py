"""Checksums of an artifact: written when it is made, and verified before its files are used."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from quantbench.core.identity import FileIdentity, identify, sha256_of

CHECKSUMS = "checksums.json"
_IGNORED = "__pycache__"
_NOTES = "notes.txt"
_VERIFIED = ".verified"

_RUN: ContextVar[Path | None] = ContextVar("run", default=None)
"""The folder of the run that this process works for."""


@contextmanager
def of_run(folder: Path) -> Iterator[None]:
    """Share verified checksums among all processes of the run with that folder, and keep notes there."""
    token = _RUN.set(folder)
    try:
        yield
    finally:
        _RUN.reset(token)


def say(sentence: str) -> None:
    """Tell the user: among the run's notes, or on stderr outside a run."""
    run = _RUN.get()
    if run is None:
        print(f"quantbench: {sentence}", file=sys.stderr)
        return
    with (run / _NOTES).open("a") as stream:  # appended in one write, so that lines of several processes do not mix
        stream.write(" ".join(sentence.split()) + "\n")


def said(run: Path) -> list[str]:
    """The notes of a run, without repetitions."""
    notes = run / _NOTES
    return list(dict.fromkeys(notes.read_text().splitlines())) if notes.is_file() else []


def seal(folder: Path) -> None:
    """Write the checksums of all files in ``folder``; for links, their targets' paths."""
    (folder / CHECKSUMS).write_text(json.dumps({name: _checksum(folder / name) for name in _names(folder)}, indent=1))


def damage(folder: Path) -> str:
    """What is wrong with a sealed folder, in a few words; empty if it is intact.

    A file is read only once per process, and only once per run.
    """
    try:
        sealed = json.loads((folder / CHECKSUMS).read_text())
        names = set(_names(folder))
    except FileNotFoundError:
        return "it has no checksums"
    except (OSError, ValueError):
        return "its checksums cannot be read"
    if not isinstance(sealed, dict) or sealed.keys() != names:
        return "files are missing or were added"
    for name, checksum in sealed.items():
        try:
            if _checksum(folder / name) != checksum:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return ""


def _names(folder: Path) -> list[str]:
    """Files and links below ``folder``, without the bytecode that Python leaves there."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    names = (path.relative_to(folder) for path in found if _IGNORED not in path.parts)
    return sorted(str(name) for name in names if str(name) != CHECKSUMS)


def _checksum(path: Path) -> str:
    if path.is_symlink():  # the user's own file, which the checkpoint vouches for
        return f"link to {path.readlink()}"
    return _once(path, identify(path), _RUN.get())


@cache
def _once(path: Path, identity: FileIdentity, run: Path | None) -> str:
    """sha256 of the file with this ``identity``; another process of the run may have computed it already."""
    if run is None:
        return sha256_of(path)
    name = hashlib.sha256(json.dumps([str(path), identity]).encode()).hexdigest()
    note = run / _VERIFIED / name
    if note.is_file() and len(known := note.read_text()) == len(name):
        return known
    found = sha256_of(path)
    note.parent.mkdir(exist_ok=True)
    note.write_text(found)
    return found
