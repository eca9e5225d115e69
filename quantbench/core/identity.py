"""Which file this is: its stat fields, which need no reading, and the hash of its contents.

No postponed annotations here: cattrs, which reads these named tuples from JSON, needs real types.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple


class FileIdentity(NamedTuple):
    """Stays equal until the file is written to or replaced, even by one of equal size and time.

    ``touch -r`` can set ``mtime_ns``; only the kernel sets ``ctime_ns``. Times are in nanoseconds.
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
    """The identity of a file, or of a link's target; OSError if it does not exist."""
    found = path.stat()
    return FileIdentity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, computed at about 1 GB/s."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
