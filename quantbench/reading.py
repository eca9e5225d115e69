"""Many parquet files of one table as one pyarrow table: files that cannot be read are reported, no column is dropped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from quantbench.record import SCHEMA_VERSION
from quantbench.schema import VERSION_KEY, schema

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

    Content = tuple[str, pa.Table | Exception]

_REQUESTS = 16
"""Files of a remote place that are read at a time; of a local one as many as there are CPUs."""

_BATCH = 32
_FEW = 1000
"""So many files are read by one thread at a time, and joined there if they have no more rows than this each."""

_NAMED = 3
"""So many columns stand in a sentence."""


def read_folder(files: fs.FileSystem, folder: str, table: str) -> pa.Table | None:
    """All rows of ``table`` in the files under ``folder``, in the order of their names; None where there is no such file.

    Columns are those of the schema, nulls where an older file lacks them, then any others that the files have: those of a
    newer version, or of a metric that is not installed here. Warns of files that are left out, and of newer ones.
    """
    import pyarrow as pa

    wanted = schema(table)
    sentences: list[str] = []
    found: dict[str, pa.Table] = {}
    whole = wanted
    for path, content in _contents(files, folder, wanted):
        try:
            if isinstance(content, Exception):
                raise content
            if not content.schema.equals(whole):
                whole = pa.unify_schemas([whole, content.schema], promote_options="permissive")
            found[path] = content
        except (pa.ArrowException, OSError) as error:
            sentences.append(f"{path} cannot be read and is left out ({plain(error)})")
    sentences += _of_newer(found, wanted)
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=3)
    return pa.concat_tables(_conform(each, whole) for each in found.values()) if found else None


def plain(error: Exception) -> str:
    """The first line of an error."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _contents(files: fs.FileSystem, folder: str, wanted: pa.Schema) -> Iterator[Content]:
    """The path of every file under ``folder`` with its table, or why it cannot be read; small files are joined."""
    from pyarrow import fs

    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    infos = files.get_file_info(selector)
    paths = sorted(info.path for info in infos if info.type == fs.FileType.File and info.path.endswith(".parquet"))
    workers = (os.cpu_count() or 1) if files.type_name == "local" else _REQUESTS
    size = min(max(len(paths) // (4 * workers), 1), _BATCH)
    batches = [paths[start : start + size] for start in range(0, len(paths), size)]

    def read(batch: Sequence[str]) -> list[Content]:
        return _joined([(path, _content(files, path, wanted)) for path in batch], wanted)

    with ThreadPoolExecutor(workers) as pool:
        yield from chain.from_iterable(pool.map(read, batches))


def _joined(contents: Sequence[Content], wanted: pa.Schema) -> list[Content]:
    """The same with neighbours of few rows as one table, where there is nothing to tell of them."""
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


def _content(files: fs.FileSystem, path: str, wanted: pa.Schema) -> pa.Table | Exception:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open_input_file(path) as stream:
            content = pa.BufferReader(stream.read_buffer())  # one request, where each of 200 columns would be one
        return _conform(pq.ParquetFile(content, page_checksum_verification=True).read(use_threads=False), wanted)
    except (pa.ArrowException, OSError) as error:
        return error


def _conform(found: pa.Table, wanted: pa.Schema) -> pa.Table:
    """The columns ``wanted``, nulls for those that an older file lacks, then the others as they are."""
    import pyarrow as pa

    if found.schema.equals(wanted):
        return found
    have = set(found.column_names)  # pyarrow makes the list anew each time it is asked for
    columns: dict[str, Any] = {
        field.name: found.column(field.name).cast(field.type) if field.name in have else pa.nulls(len(found), field.type)
        for field in wanted
    }
    columns |= {name: found.column(name) for name in found.column_names if name not in columns}
    return pa.table(columns).replace_schema_metadata(found.schema.metadata)


def _of_newer(found: Mapping[str, pa.Table], wanted: pa.Schema) -> list[str]:
    """One sentence on all files of a newer schema; none where there are none."""
    newer = [path for path, table in found.items() if _version(table.schema) > SCHEMA_VERSION]
    if not newer:
        return []
    known = set(wanted.names)
    others = list(dict.fromkeys(name for path in newer for name in found[path].column_names if name not in known))
    more = f" (and {len(newer) - 1} more)" if len(newer) > 1 else ""
    unknown = f"unknown columns are left as they are: {_some(others)}" if others else "every column of it is known here"
    version = max(_version(found[path].schema) for path in newer)
    sentence = (
        f"{newer[0]}{more} was written with schema version {version}, and this quantbench knows {SCHEMA_VERSION}; {unknown}; "
        "a newer quantbench says what they mean"
    )
    return [sentence]


def _version(found: pa.Schema) -> int:
    text = (found.metadata or {}).get(VERSION_KEY, b"")
    return int(text) if text.isdigit() else 0


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
