"""A parquet file that is complete when it appears, or does not appear at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

_ONE_ROW: Mapping[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
"""How one row is written: a codec, dictionary and statistics for each of 200 values would take longer than everything else."""

_MANY_ROWS: Mapping[str, Any] = {"compression": "zstd"}


def write_file(files: fs.FileSystem, path: str, rows: pa.Table) -> None:
    """Write the rows as the file ``path``, replacing any earlier one. OSError or ArrowException, leaving nothing."""
    import pyarrow.parquet as pq

    folder, _, name = path.rpartition("/")
    files.create_dir(folder, recursive=True)
    with _partial(files, f"{folder}/.{name}.partial") as partial:
        with files.open_output_stream(partial) as stream:
            pq.write_table(rows, stream, write_page_checksum=True, **(_ONE_ROW if len(rows) == 1 else _MANY_ROWS))
        _flush_to_disk(files, partial)
        files.move(partial, path)


def remove_file(files: fs.FileSystem, path: str) -> None:
    """Remove the file, if there is one."""
    from pyarrow import fs

    if files.get_file_info(path).type == fs.FileType.File:
        files.delete_file(path)


@contextmanager
def _partial(files: fs.FileSystem, path: str) -> Iterator[str]:
    """A name for a file that is removed unless it has been moved away, also on Ctrl-C."""
    try:
        yield path
    except BaseException:
        with contextlib.suppress(OSError):
            files.delete_file(path)
        raise


def _flush_to_disk(files: fs.FileSystem, path: str) -> None:
    if files.type_name == "local":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
