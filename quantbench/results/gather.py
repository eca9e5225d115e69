"""The files of a run that has ended, one a scenario, gathered into few; and parted again where the run is resumed.

A file of one row is mostly its footer, and each takes milliseconds to open. A gathered file says in its name which numbers
it stands for, and in its metadata how many rows are of each; while it is there, files with these numbers do not count (see
``listing``). So a process may be killed at any moment of either way: each row is found, and found once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantbench.results.listing import files_below
from quantbench.results.names import Name
from quantbench.results.parts import apart, together
from quantbench.results.writing import remove_file, write_file

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

_TABLES = ("samples", "outputs", "scenarios")
_MOST = 1000
"""Files that are gathered into one, at most: their rows are in memory together."""


def gather(files: fs.FileSystem, root: str, day: str, run: str) -> None:
    """Gather the files of a run that began on that ``day``; what cannot be gathered stays as it is."""
    import pyarrow as pa

    for table in _TABLES:
        folder = f"{root}/{table}/{day}"
        gathered, single = _of_run(files, folder, run)
        for name in single:
            if any(each.stands_for(name) for each in gathered):  # a process was killed before it had removed them
                remove_file(files, f"{folder}/{name}")
        left = [name for name in single if not any(each.stands_for(name) for each in gathered)]
        for start in range(0, len(left), _MOST):
            try:
                _gather(files, folder, left[start : start + _MOST])
            except (OSError, pa.ArrowException):  # a full disk, or a file that somebody changed: its rows are where they were
                return


def part(files: fs.FileSystem, root: str, day: str, run: str) -> None:
    """The gathered files of a run as one a scenario again. OSError, ArrowException or ValueError if it cannot be done."""
    for table in _TABLES:
        folder = f"{root}/{table}/{day}"
        for name in _of_run(files, folder, run)[0]:
            for number, rows in apart(_read(files, f"{folder}/{name}")).items():
                write_file(files, f"{folder}/{Name(run, number)}", rows)
            files.delete_file(f"{folder}/{name}")


def _gather(files: fs.FileSystem, folder: str, names: Sequence[Name]) -> None:
    parts = {name.first: _read(files, f"{folder}/{name}") for name in names}
    schemas = [rows.schema for rows in parts.values()]
    if len(parts) < 2 or not all(each.equals(schemas[0], check_metadata=True) for each in schemas):
        return  # of several versions
    write_file(files, f"{folder}/{Name(names[0].run, names[0].first, names[-1].first)}", together(parts))
    for name in names:
        files.delete_file(f"{folder}/{name}")


def _read(files: fs.FileSystem, path: str) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open_input_file(path) as stream:
        source = pa.BufferReader(stream.read_buffer())  # one request, where each of 200 columns would be one
        return pq.ParquetFile(source, page_checksum_verification=True).read(use_threads=False)


def _of_run(files: fs.FileSystem, folder: str, run: str) -> tuple[list[Name], list[Name]]:
    """A run's gathered files, and those of one scenario, in order."""
    names = [name for name in map(Name.of, files_below(files, folder)) if name and name.run == run]
    names.sort(key=lambda name: name.first)
    return [name for name in names if name.last is not None], [name for name in names if name.last is None]
