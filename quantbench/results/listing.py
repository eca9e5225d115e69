"""The files of a table: which run each is of, by its name, so that those of other runs need not be opened."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from quantbench.results.reading import read_files
from quantbench.results.schema import schema

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

_SUFFIX = ".parquet"

NAME = re.compile(r"(?P<run>[^.].*)-(?P<number>\d{5,})\.parquet")
"""A file's name: the run that wrote it, and its number within the run."""


def list_files(files: fs.FileSystem, folder: str) -> list[str]:
    """The parquet files under ``folder``, sorted; none where there is no such folder."""
    from pyarrow import fs

    if files.type_name == "local":
        return sorted(_local(folder))
    infos = files.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return sorted(path for info in infos if (path := info.path).endswith(_SUFFIX) and info.type == fs.FileType.File)


def _local(folder: str) -> Iterator[str]:
    """The same by names alone: pyarrow asks for the size and time of each, which of 100,000 files takes a second."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield from _local(entry.path)
                elif entry.name.endswith(_SUFFIX) and entry.is_file():
                    yield entry.path
    except FileNotFoundError:  # also where it is removed meanwhile
        return


def by_run(paths: Iterable[str]) -> dict[str, list[str]]:
    """The files by the run in their names, in their order; under "" those whose names tell none."""
    named: dict[str, list[str]] = {}
    for path in paths:
        match = NAME.fullmatch(path.rpartition("/")[2])
        named.setdefault(match["run"] if match else "", []).append(path)
    return named


def own_rows(files: fs.FileSystem, root: str, columns: Sequence[str]) -> pa.Table:
    """These columns of the runs' own rows, of table ``runs`` under ``root``; files that cannot be read are ignored."""
    rows, _ = read_files(files, list_files(files, f"{root}/runs"), "runs", columns)
    return schema("runs").empty_table().select(list(columns)) if rows is None else rows


def files_of(files: fs.FileSystem, root: str, paths: Sequence[str], runs: Collection[str]) -> list[str]:
    """Those of the files ``paths`` of a table under ``root`` that may hold rows of these runs: the ones named after them.

    Where a run has none, also those whose names tell no run that has a row of its own: somebody may have merged files.
    """
    named = by_run(paths)
    wanted = {path for run in runs for path in named.get(run, ())}
    if not all(run in named for run in runs):
        known = set(own_rows(files, root, ["run_id"])["run_id"].to_pylist())
        wanted |= {path for run, of_run in named.items() if run not in known for path in of_run}
    return [path for path in paths if path in wanted]
