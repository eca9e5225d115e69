"""Which file this is: what the disk says of it without reading, and the hash of what it holds.

Annotations are evaluated here: cattrs, which reads named tuples from JSON, looks for types in them.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple


class FileIdentity(NamedTuple):
    """Equal while nobody has written to the file, or put another in its place, not even one of equal size and time.

    ``touch -r`` sets ``mtime_ns``; ``ctime_ns`` is the kernel's own. Times are in nanoseconds.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class HashedFile(NamedTuple):
    """A file as it was when it was hashed; ``path`` is absolute, the hash is sha256."""

    path: str
    sha256: str
    identity: FileIdentity


def identify(path: Path) -> FileIdentity:
    """The identity of a file, of a link's target; OSError where there is none."""
    found = path.stat()
    return FileIdentity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, read once through at about 1 GB/s."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
