"""Many parquet files of one table as one pyarrow table: unreadable files are reported, and no column is dropped."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from quantbench.core.machine import available_cpus
from quantbench.core.outside import whole_number
from quantbench.core.record import SCHEMA_VERSION
from quantbench.core.text import shortened
from quantbench.results.schema import VERSION_KEY, schema

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import fs

    Content = tuple[str, pa.Table | Exception]

_REQUESTS = 16
"""Remote files read at a time; of local ones as many as there are CPUs for this process."""

_BATCH = 32
"""The most files that one thread reads in one go."""

_FEW = 1000
"""Files of at most this many rows are joined by the thread that reads them."""

_SMALL = 2**20
"""Bytes of a file that is always read whole."""

_PART = 2**16
"""Bytes of a column that are read at a time from a larger local file."""

_PIECE = 4096
"""Rows of a larger file that are looked at together where only those of some runs are wanted."""

_NAMED = 3
"""Columns named in a sentence."""


_MARKS: Mapping[str, frozenset[str]] = {
    "scenarios": frozenset({"run_id", "scenario_id", "started_at"}),
    "samples": frozenset({"run_id", "scenario_id", "phase", "value_s"}),
    "outputs": frozenset({"run_id", "scenario_id", "index", "prompt"}),
    "runs": frozenset({"run_id", "started_at", "interrupted"}),
}
"""Columns that identify a table's files, whatever wrote or rewrote them; every version has had them."""


_NEVER_NULL = ("run_id", "scenario_id", "started_at")


def read_files(
    files: fs.FileSystem, paths: Sequence[str], table: str, columns: Sequence[str] | None = None, *,
    runs: Collection[str] | None = None,
) -> tuple[pa.Table | None, list[str]]:
    """All rows of ``table`` in the files ``paths``, in their order, None where none can be read; then what is to be warned of.

    With ``runs`` only the rows of these: of a file that holds many runs no others are held in memory.

    Columns are those of the schema (null where an older file lacks them), then any others in the files: those of a newer
    version, or of a metric that is not installed here. With ``columns`` of the schema, they are these and no others. Warnings
    are about files that are left out, and about newer ones unless their further columns are not asked for.
    """
    import pyarrow as pa

    wanted = _Wanted(schema(table) if columns is None else _some_of(table, columns), _MARKS[table], columns is not None, runs)
    sentences: list[str] = []
    tables: dict[str, pa.Table] = {}
    whole = wanted.schema
    for path, content in _contents(files, paths, wanted):
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
    sentences += _of_newer(tables, wanted.schema) if columns is None else []
    return (pa.concat_tables(kept) if kept else None), sentences


def of_runs(rows: pa.Table, runs: Collection[str]) -> pa.Table:
    """The rows of these runs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    theirs = pc.is_in(rows["run_id"].cast(pa.string()), value_set=pa.array(runs, pa.string()))
    if pc.all(theirs).as_py():  # as of most files; a filter takes a millisecond
        return rows
    return rows.filter(theirs) if pc.any(theirs).as_py() else rows.schema.empty_table()


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of tables, of which some may have further columns: these are null in the rows of the others."""
    import pyarrow as pa

    return pa.concat_tables(tables, promote_options="permissive")


def as_frame(rows: pa.Table) -> pd.DataFrame:
    """The rows as a DataFrame with the schema's dtypes: integers and booleans have pandas' nullable ones."""
    import pandas as pd
    import pyarrow as pa

    types = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype(), pa.string(): pd.StringDtype(na_value=float("nan"))}
    frame: pd.DataFrame = rows.to_pandas(types_mapper=types.get, ignore_metadata=True)
    return frame


def plain(error: Exception) -> str:
    """The first line of an error; a file's own words in it may be long."""
    return shortened(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The columns to be had of every file, those by which a file is known as the table's, and whether no others are wanted.

    ``runs`` are those of which rows are wanted, None stands for all.
    """

    schema: pa.Schema
    marks: frozenset[str]
    alone: bool
    runs: Collection[str] | None


def _some_of(table: str, columns: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([schema(table).field(name) for name in columns])


def _contents(files: fs.FileSystem, paths: Sequence[str], wanted: _Wanted) -> Iterator[Content]:
    """Each path with its table, or with the error that keeps it from being read; small files are joined."""
    workers = available_cpus() if files.type_name == "local" else _REQUESTS
    size = min(max(len(paths) // (4 * workers), 1), _BATCH)
    batches = [paths[start : start + size] for start in range(0, len(paths), size)]

    def read(batch: Sequence[str]) -> list[Content]:
        return _joined([(path, _content(files, path, wanted)) for path in batch], wanted.schema)

    if workers == 1:  # a second thread would only take turns with the one that waits for it
        yield from chain.from_iterable(map(read, batches))
        return
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


def _content(files: fs.FileSystem, path: str, wanted: _Wanted) -> pa.Table | Exception:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open_input_file(path) as stream:
            local = files.type_name == "local"
            # one request, where each of 200 columns would be one; of a large file no more in memory than is wanted
            whole = stream.size() <= _SMALL or not (local or wanted.alone)
            source = pa.BufferReader(stream.read_buffer()) if whole else stream
            how = {"buffer_size": _PART} if local and not whole else {"pre_buffer": not whole}
            content = pq.ParquetFile(source, page_checksum_verification=True, **how)
            _require_own(content.schema, wanted.marks)
            rows = _rows(content, wanted.schema.names if wanted.alone else None, wanted.runs)
            return _conform(_named(rows), wanted.schema)
    except (pa.ArrowException, OSError, ValueError) as error:  # odd metadata is a ValueError
        return error


def _rows(content: pq.ParquetFile, columns: list[str] | None, runs: Collection[str] | None) -> pa.Table:
    """The rows of a file, or only those of some runs, for which it is gone through piece by piece."""
    import pyarrow as pa

    many = content.metadata.num_rows > _FEW  # of a few, columns are read sooner than threads are told to
    if runs is None or not many:
        rows = content.read(columns, use_threads=many)
        return rows if runs is None else of_runs(rows, runs)
    pieces = content.iter_batches(_PIECE, columns=columns, use_threads=True)
    kept = [of_runs(pa.Table.from_batches([piece]), runs) for piece in pieces]
    return pa.concat_tables([each for each in kept if len(each)] or kept[:1])


def _require_own(columns: pq.ParquetSchema, marks: frozenset[str]) -> None:
    """Raise ValueError for a file whose columns are not this table's."""
    names = [columns.column(index).path for index in range(len(columns))]  # arrow's schema of 200 columns takes a millisecond
    if lacks := sorted(marks.difference(names)):
        raise ValueError(f"it is not a file of this table: it has no column {_some(lacks)}")
    if len(names) != len(set(names)):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"it has a column twice: {_some(twice)}")


def _named(found: pa.Table) -> pa.Table:
    """The table; ValueError for one with a row of no run or scenario, or of no time, which nothing could be said of."""
    places = [(name, found.schema.get_field_index(name)) for name in _NEVER_NULL]
    if lacks := [name for name, place in places if place >= 0 and found.column(place).null_count]:
        raise ValueError(f"it has a row without {_some(lacks)}")
    return found


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
    return whole_number(text.decode("ascii", "replace")) or 0


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return shortened(", ".join(names[:_NAMED])) + (f" and {more} more" if more > 0 else "")
