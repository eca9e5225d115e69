"""Which rows of a gathered file were in which file of one scenario, and where the rows of a file are that is gone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from quantbench.core.outside import parse_json
from quantbench.results.names import Name

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

_KEY = b"quantbench.parts"
"""Metadata of a gathered file: JSON, the number and the rows of each file that it stands for, in order."""


def together(parts: Mapping[int, pa.Table]) -> pa.Table:
    """The rows of files of one scenario, by their numbers in order, as those of a gathered file. All have one schema."""
    import pyarrow as pa

    tables = list(parts.values())
    told = json.dumps([(number, len(rows)) for number, rows in parts.items()]).encode()
    return pa.concat_tables(tables).replace_schema_metadata({**(tables[0].schema.metadata or {}), _KEY: told})


def apart(rows: pa.Table) -> dict[int, pa.Table]:
    """What was put ``together``, by number; ValueError where it does not say so, or wrongly."""
    metadata = dict(rows.schema.metadata or {})
    told: Any = None
    with suppress(ValueError):
        told = parse_json(metadata.pop(_KEY, b"").decode("utf-8", "replace"))
    if not isinstance(told, list) or not all(_is_part(each) for each in told) or sum(each[1] for each in told) != len(rows):
        raise ValueError("it does not say which rows were of which file")
    own = rows.replace_schema_metadata(metadata)
    starts = accumulate((count for _, count in told), initial=0)
    return {number: own.slice(start, count) for (number, count), start in zip(told, starts, strict=False)}


def now_in(files: fs.FileSystem, path: str) -> Sequence[str]:
    """Where the rows of a file that is gone are: in the one in which it was gathered, or in those into which it was parted."""
    from pyarrow import fs

    gone, folder = Name.of(path), path.rpartition("/")[0]
    if gone is None:
        return []
    infos = files.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    there = [(name, path) for path in sorted(info.path for info in infos) if (name := Name.of(path))]
    if gathered := [path for name, path in there if name.stands_for(gone)]:
        return gathered[:1]
    return [path for name, path in there if gone.stands_for(name)]


def _is_part(told: object) -> bool:
    return isinstance(told, list) and len(told) == 2 and all(isinstance(each, int) and each >= 0 for each in told)
