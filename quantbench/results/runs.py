"""The runs of a store, the latest last, and their rows of ``scenarios``: one run at a time, without opening files of others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from quantbench.results.listing import by_run, list_files, own_rows
from quantbench.results.reading import as_frame, joined, of_runs, read_files
from quantbench.results.schema import schema
from quantbench.results.store import filesystem, in_order, no_results, none_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_ORDER = ("run_id", "run_number", "started_at")
"""What tells the order of runs."""


class Runs:
    """The runs that have rows of ``scenarios`` under a path.

    Whose a file is, its name says; the order of runs, their own rows in table ``runs``. Of ``scenarios`` only these files are
    opened: those of the runs asked for, those whose names tell no run that has such a row (a store that was merged, say), and
    of a run without such a row one. Warns of files that were opened and cannot be read.
    """

    def __init__(self, path: str = "results") -> None:
        """List the files under ``path``, a folder or a URI; StoreError where there are none, or it cannot be reached."""
        self._path = path
        self._files, self._root = filesystem(path)
        paths = list_files(self._files, f"{self._root}/scenarios")
        if not paths:
            raise no_results(path)
        self._named = by_run(paths)
        self._others = self._named.pop("", [])

    def __contains__(self, run: object) -> bool:
        """Whether there are rows of that run, as far as can be told without reading them."""
        return run in self._named or run in self.ids

    @cached_property
    def ids(self) -> Sequence[str]:
        """The ids of the runs in the order of ``in_order``."""
        import pyarrow as pa

        rows = own_rows(self._files, self._root, _ORDER)
        known = set(rows["run_id"].to_pylist())
        unknown = {run: paths for run, paths in self._named.items() if run not in known}
        parts = [of_runs(rows, list(self._named)), self._read(self._others, _ORDER), *self._first_rows(unknown)]
        return in_order(as_frame(pa.concat_tables(parts)))

    def of(self, runs: Collection[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows of these runs, ordered by their ids; StoreError where there are none."""
        wanted = sorted(set(runs))
        rows = self._rows(wanted, columns)
        if not len(rows):
            raise none_of(wanted, self._path)
        return as_frame(rows)

    def latest(
        self, count: int = 1, *, exclude: Collection[str] = (), files: float = math.inf, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """The rows of the last ``count`` runs that have rows, except ``exclude``, the latest last; StoreError without any.

        Of fewer runs where those would lie in more than so many ``files``, as each takes milliseconds to open; never of none.
        Of the schema's ``columns`` only, which include ``run_id``.
        """
        left = [run for run in self.ids if run not in exclude]
        opened = accumulate(len(self._named.get(run, ())) for run in reversed(left[-count:]))
        count = max(1, sum(each <= files for each in opened))
        parts: list[pa.Table] = []
        while left and count:  # once, unless nothing can be read of some runs
            left, wanted = left[:-count], left[-count:]
            parts.insert(0, self._rows(wanted, columns))
            count -= len(set(parts[0]["run_id"].to_pylist()))
        if not any(map(len, parts)):
            raise no_results(self._path)
        return as_frame(joined(parts))

    def latest_first(
        self, columns: Sequence[str] | None = None, *, exclude: Collection[str] = ()
    ) -> Iterator[pd.DataFrame]:
        """The rows of a run at a time, the latest run first; of the schema's ``columns`` only, which include ``run_id``.

        What lies in files whose names tell no run is read once for all of them.
        """
        merged: pa.Table | None = None
        for run in reversed(self.ids):
            if run in exclude:
                continue
            if run in self._named:
                rows = self._read(self._named[run], columns, [run])
            else:
                merged = self._read(self._unnamed, columns) if merged is None else merged
                rows = of_runs(merged, [run])
            if len(rows):
                yield as_frame(rows)

    def _rows(self, runs: Sequence[str], columns: Sequence[str] | None) -> pa.Table:
        """The rows of these runs in this order, from all of their files at once."""
        import pyarrow as pa
        import pyarrow.compute as pc

        own = [run for run in runs if run in self._named]
        others = [run for run in runs if run not in self._named]
        rows = self._read([path for run in own for path in self._named[run]], columns, own)
        if not others:  # files are read in the order given
            return rows
        rows = joined([rows, self._read(self._unnamed, columns, others)])
        places = pc.index_in(rows["run_id"], value_set=pa.array(runs, pa.string()))
        return rows.take(pc.sort_indices(places))

    @property
    def _unnamed(self) -> list[str]:
        """The files whose names do not tell a run."""
        known = set(self.ids)
        return self._others + [path for run, paths in self._named.items() if run not in known for path in paths]

    def _first_rows(self, named: Mapping[str, Sequence[str]]) -> Iterator[pa.Table]:
        """Rows of one file of each of these runs, the first that can be read and is the run's."""
        left = dict(named)
        while left:
            rows = self._read([paths[0] for paths in left.values()], _ORDER)
            yield rows
            told = set(rows["run_id"].to_pylist())
            left = {run: paths[1:] for run, paths in left.items() if run not in told and len(paths) > 1}

    def _read(
        self, paths: Sequence[str], columns: Sequence[str] | None, runs: Collection[str] | None = None
    ) -> pa.Table:
        """The rows of these files, as far as they can be read; with ``runs`` only those of these runs."""
        rows, sentences = read_files(self._files, paths, "scenarios", columns, runs=runs)
        for sentence in sentences:
            warnings.warn(sentence, stacklevel=2)
        return schema("scenarios").empty_table().select(columns or schema("scenarios").names) if rows is None else rows

