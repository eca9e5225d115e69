"""The files of a table: which run each is of, by its name, so that those of other runs need not be opened."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from quantbench.results.reading import read_files
from quantbench.results.schema import schema

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

NAME = re.compile(r"(?P<run>[^.].*)-(?P<number>\d{5,})\.parquet")
"""A file's name: the run that wrote it, and its number within the run."""

_DAY = re.compile(r"(\d{4})(\d\d)(\d\d)T")
"""How the id of a run begins, unless somebody named it."""


def list_files(files: fs.FileSystem, folder: str) -> list[str]:
    """The parquet files under ``folder``, sorted; none where there is no such folder."""
    return [path for path in files_below(files, folder) if path.endswith(".parquet")]


def files_below(files: fs.FileSystem, folder: str) -> list[str]:
    """All files under ``folder``, sorted; each folder once, as links to folders above it would lead round without end."""
    from pyarrow import fs

    if files.type_name == "local":
        listed: list[str] = []
        _list_local(folder, listed, set())
        return sorted(listed)
    infos = files.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return sorted(info.path for info in infos if info.type == fs.FileType.File)


def _list_local(folder: str, listed: list[str], seen: set[tuple[int, int]]) -> None:
    """Add files by names alone: pyarrow asks for the size and time of each, which of 100,000 files takes a second."""
    try:
        place = os.stat(folder)  # noqa: PTH116 - as scandir, which has strings
        with os.scandir(folder) as entries:
            inside = list(entries)
    except FileNotFoundError:  # also where it is removed meanwhile
        return
    if (place.st_dev, place.st_ino) in seen:
        return
    seen.add((place.st_dev, place.st_ino))
    for entry in inside:
        linked = entry.is_symlink()
        if os.path.isfile(entry.path) if linked else entry.is_file():  # noqa: PTH113 - is_file raises for a link to itself
            listed.append(entry.path)
        elif os.path.isdir(entry.path) if linked else entry.is_dir():  # noqa: PTH112 - so does is_dir
            _list_local(entry.path, listed, seen)


def by_run(paths: Iterable[str]) -> dict[str, list[str]]:
    """The files by the run in their names, in their order; under "" those whose names tell none."""
    named: dict[str, list[str]] = {}
    for path in paths:
        match = NAME.fullmatch(path.rpartition("/")[2])
        named.setdefault(match["run"] if match else "", []).append(path)
    return named


def files_by_day(files: fs.FileSystem, folder: str, runs: Iterable[str]) -> list[str]:
    """The files of these runs in a table's folders of the days that their ids begin with; none unless each has some there."""
    days: dict[str, dict[str, list[str]]] = {}
    found: list[str] = []
    for run in dict.fromkeys(runs):
        if not (began := _DAY.match(run)):
            return []
        day = "-".join(began.groups())
        if day not in days:
            days[day] = by_run(list_files(files, f"{folder}/date={day}"))
        if run not in days[day]:
            return []
        found += days[day][run]
    return sorted(found)


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
