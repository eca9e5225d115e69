"""What comes from outside, read with care: names that can be no file, files without an end, text that no parser survives.

Whoever reads by these functions gets OSError or ValueError, each with a short reason, and never waits: a FIFO that nobody
writes to, or ``/dev/zero``, is refused before it is read.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

MOST_BYTES = 2**28
"""No file that is read whole is larger: tokenizers of 50 MB exist, and texts to score of 100."""

_DEEP = "it is nested too deeply"
_LONG = "a number in it has too many digits"
_DIGITS = 18
"""Numbers of so many digits fit 64 bits; Python refuses to read those of more than 4,300."""


def expanded(name: str | Path) -> Path:
    """``name`` as a path, with the home folder for ``~``; as it stands where there is no such home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def exists(name: str | Path) -> bool:
    """Whether something is there; False for a name that no file can have (too long, NUL), or that may not be looked at."""
    return _mode(name) != 0


def is_file(name: str | Path) -> bool:
    """Whether it is a regular file; False where ``exists`` is."""
    return stat.S_ISREG(_mode(name))


def is_folder(name: str | Path) -> bool:
    """Whether it is a folder; False where ``exists`` is."""
    return stat.S_ISDIR(_mode(name))


def _mode(name: str | Path) -> int:
    try:
        return os.stat(name).st_mode  # noqa: PTH116 - Path raises for some of the names that this is about, depending on Python
    except (OSError, ValueError):
        return 0


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """All bytes of a regular file; OSError for anything else, and where there are more than ``most``."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL in its name
        raise FileNotFoundError(errno.ENOENT, "no file can have this name", str(path)) from error
    with os.fdopen(handle, "rb") as stream:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
        return stream.read() or b""  # None of a file of /proc that would have to be waited for


def read_text(path: Path, encoding: str = "utf-8", most: int = MOST_BYTES) -> str:
    """The text of a regular file, with every end of line as a newline; OSError as ``read_bytes``, and UnicodeDecodeError."""
    return read_bytes(path, most).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str | bytes) -> Any:
    """What JSON says; ValueError for everything that is none, or that Python cannot hold."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError as error:
        raise ValueError(_DEEP) from error
    except ValueError as error:
        raise ValueError(_LONG) from error


def parse_toml(text: str) -> dict[str, Any]:
    """What TOML says; ValueError for everything that is none, or that Python cannot hold."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise ValueError(_DEEP) from error
    except ValueError as error:
        raise ValueError(_LONG) from error


def whole_number(text: str) -> int | None:
    """The number that ``text`` writes in ASCII digits; None for any other text, and from 10^18 on."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _DIGITS else None
