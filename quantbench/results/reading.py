"""Many parquet files of one table as one pyarrow table: unreadable files are reported, and no column is dropped."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from quantbench.core.record import SCHEMA_VERSION
from quantbench.results.schema import VERSION_KEY, schema

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

    Content = tuple[str, pa.Table | Exception]

_REQUESTS = 16
"""Remote files read at a time; of local ones as many as there are CPUs."""

_BATCH = 32
"""The most files that one thread reads in one go."""

_FEW = 1000
"""Files of at most this many rows are joined by the thread that reads them."""

_NAMED = 3
"""Columns named in a sentence."""


_MARKS: Mapping[str, frozenset[str]] = {
    "scenarios": frozenset({"run_id", "scenario_id", "started_at"}),
    "samples": frozenset({"run_id", "scenario_id", "phase", "value_s"}),
    "outputs": frozenset({"run_id", "scenario_id", "index", "prompt"}),
    "runs": frozenset({"run_id", "started_at", "interrupted"}),
}
"""Columns that identify a table's files, whatever wrote or rewrote them; every version has had them."""


def read_folder(files: fs.FileSystem, folder: str, table: str, run: str | None = None) -> pa.Table | None:
    """All rows of ``table`` in the files under ``folder``, in the order of the files' names; None where there is no such file.

    For one ``run`` only the files named after it are read; where there are none, files may have been merged, and all are read.
    Columns are those of the schema (null where an older file lacks them), then any others in the files: those of a newer
    version, or of a metric that is not installed here. Warns about files that are left out, and about newer ones.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    known = schema(table)
    sentences: list[str] = []
    tables: dict[str, pa.Table] = {}
    whole = known
    for path, content in _contents(files, _paths(files, folder, run), known, _MARKS[table]):
        try:
            if isinstance(content, Exception):
                raise content
            if not content.schema.equals(whole):
                whole = pa.unify_schemas([whole, content.schema], promote_options="permissive")
            tables[path] = content
        except (pa.ArrowException, OSError, ValueError) as error:
            sentences.append(f"{path} cannot be read and is left out ({plain(error)})")
    kept = []
    for path, content in tables.items():
        try:
            kept.append(_conform(content, whole))
        except pa.ArrowException as error:  # an integer too large for the float64 of other files
            sentences.append(f"{path} cannot be read and is left out ({plain(error)})")
    sentences += _of_newer(tables, known)
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=3)
    if not kept:
        return None
    rows = pa.concat_tables(kept)
    return rows if run is None else rows.filter(pc.equal(rows["run_id"], pa.scalar(run)))


def highest_run_number(files: fs.FileSystem, folder: str) -> int:
    """The highest ``run_number`` in the files of runs under ``folder``; 0 where there is none. Unreadable files are ignored."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def number(path: str) -> int:
        try:
            with files.open_input_file(path) as stream:
                content = pq.ParquetFile(pa.BufferReader(stream.read_buffer()))
                if "run_number" not in content.schema_arrow.names:
                    return 0
                values = content.read(columns=["run_number"], use_threads=False)["run_number"].to_pylist()
        except (pa.ArrowException, OSError, ValueError):
            return 0
        return max((value for value in values if isinstance(value, int)), default=0)

    with ThreadPoolExecutor(_REQUESTS) as pool:
        return max(pool.map(number, _paths(files, folder, None)), default=0)


def plain(error: Exception) -> str:
    """The first line of an error."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _paths(files: fs.FileSystem, folder: str, run: str | None) -> list[str]:
    """The files under ``folder``; for one run only those named after it, if there are any."""
    from pyarrow import fs

    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    infos = files.get_file_info(selector)
    paths = sorted(info.path for info in infos if info.type == fs.FileType.File and info.path.endswith(".parquet"))
    named = re.compile(rf"{re.escape(run)}-\d{{5,}}\.parquet") if run is not None else None
    own = [path for path in paths if named and named.fullmatch(path.rpartition("/")[2])]
    return own or paths


def _contents(files: fs.FileSystem, paths: Sequence[str], wanted: pa.Schema, marks: frozenset[str]) -> Iterator[Content]:
    """Each path with its table, or with the error that keeps it from being read; small files are joined."""
    workers = (os.cpu_count() or 1) if files.type_name == "local" else _REQUESTS
    size = min(max(len(paths) // (4 * workers), 1), _BATCH)
    batches = [paths[start : start + size] for start in range(0, len(paths), size)]

    def read(batch: Sequence[str]) -> list[Content]:
        return _joined([(path, _content(files, path, wanted, marks)) for path in batch], wanted)

    with ThreadPoolExecutor(workers) as pool:
        yield from chain.from_iterable(pool.map(read, batches))


def _joined(contents: Sequence[Content], wanted: pa.Schema) -> list[Content]:
    """The same, with neighbouring small tables joined unless a warning about one of them is due."""
    import pyarrow as pa

    def small(content: Content) -> bool:
        table = content[1]
        if isinstance(table, Exception) or len(table) > _FEW:
            return False
        return table.schema.equals(wanted) and _version(table.schema) <= SCHEMA_VERSION

    found: list[Content] = []
    for join, group in groupby(contents, small):
        members = list(group)
        if join:
            tables = [table for _, table in members if isinstance(table, pa.Table)]
            members = [(members[0][0], pa.concat_tables(tables).combine_chunks())]
        found += members
    return found


def _content(files: fs.FileSystem, path: str, wanted: pa.Schema, marks: frozenset[str]) -> pa.Table | Exception:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open_input_file(path) as stream:
            content = pa.BufferReader(stream.read_buffer())  # one request, where each of 200 columns would be one
        found = pq.ParquetFile(content, page_checksum_verification=True).read(use_threads=False)
        _require_own(found.column_names, marks)
        return _conform(found, wanted)
    except (pa.ArrowException, OSError, ValueError) as error:  # odd metadata is a ValueError
        return error


def _require_own(names: Sequence[str], marks: frozenset[str]) -> None:
    """Raise ValueError for a file whose columns are not this table's."""
    if lacks := sorted(marks.difference(names)):
        raise ValueError(f"it is not a file of this table: it has no column {_some(lacks)}")
    if len(names) != len(set(names)):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"it has a column twice: {_some(twice)}")


def _conform(found: pa.Table, wanted: pa.Schema) -> pa.Table:
    """The columns ``wanted``, null where an older file lacks them, then the others unchanged."""
    import pyarrow as pa

    if found.schema.equals(wanted):
        return found
    have = set(found.column_names)  # pyarrow rebuilds the list on every access
    columns: dict[str, Any] = {
        field.name: found.column(field.name).cast(field.type) if field.name in have else pa.nulls(len(found), field.type)
        for field in wanted
    }
    columns |= {name: found.column(name) for name in found.column_names if name not in columns}
    return pa.table(columns).replace_schema_metadata(found.schema.metadata)


def _of_newer(found: Mapping[str, pa.Table], wanted: pa.Schema) -> list[str]:
    """One sentence about all files of a newer schema, if there are any."""
    newer = [path for path, table in found.items() if _version(table.schema) > SCHEMA_VERSION]
    if not newer:
        return []
    known = set(wanted.names)
    others = list(dict.fromkeys(name for path in newer for name in found[path].column_names if name not in known))
    more = f" (and {len(newer) - 1} more)" if len(newer) > 1 else ""
    unknown = f"unknown columns are kept unchanged: {_some(others)}" if others else "every column of it is known here"
    version = max(_version(found[path].schema) for path in newer)
    sentence = (
        f"{newer[0]}{more} was written with schema version {version}, and this quantbench knows {SCHEMA_VERSION}; {unknown}; "
        "upgrade quantbench to see what they mean"
    )
    return [sentence]


def _version(found: pa.Schema) -> int:
    text = (found.metadata or {}).get(VERSION_KEY, b"")
    return int(text) if text.isdigit() else 0


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
