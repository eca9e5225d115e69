"""The stored part of a run that is resumed: which scenarios are finished, and their records without measuring again."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from quantbench.core.errors import StoreError, UsageError, unknown_name
from quantbench.core.outside import parse_json
from quantbench.core.record import Record, Status
from quantbench.core.scenario import Scenario
from quantbench.core.trace import Trace
from quantbench.planning.case import Case
from quantbench.results.listing import NAME, files_below, own_rows
from quantbench.results.restore import restored
from quantbench.results.schema import TABLES
from quantbench.results.store import Run, filesystem

if TYPE_CHECKING:
    from pyarrow import fs

LAST = "last"
"""Stands for the last run that was started on this machine."""

_ROW = "{}-00000.parquet"

Key = tuple[str, int]
"""A scenario's id and its repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A stored row: the number of its files, the key of what was measured, and how it ended."""

    number: int
    scenario_key: str
    status: Status


class Earlier:
    """A stored run that is to be resumed. Reads only that run's rows, and only when they are needed.

    Use as a context manager: until it exits, no other process can resume the run.
    """

    def __init__(self, root: str, run: Run, planned: int, *, held: bool = True) -> None:
        """``planned`` counts the scenarios of the run; UsageError when another process is measuring it.

        A machine of a fleet takes part in a run that its driver holds: it does not ask for it to be ``held``.
        """
        self._files, self._root = filesystem(root)
        self._folder = f"date={run.started_at:%Y-%m-%d}"
        self._held = hold(root, run) if held else None
        self._rows: Mapping[Key, Kept] | None = None
        self.run = run
        self.planned = planned

    def __enter__(self) -> Self:
        """Nothing to do: the run is held since it was opened."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let other processes resume the run."""
        if self._held:
            self._held.close()

    @property
    def rows(self) -> Mapping[Key, Kept]:
        """Its rows when they were first asked for; after ``look_for`` only those."""
        if self._rows is None:
            paths = files_below(self._files, f"{self._root}/scenarios/{self._folder}")
            numbers = (_number(path.rpartition("/")[2], self.run.run_id) for path in paths)
            self._rows = dict(self._kept(number for number in numbers if number is not None))
        return self._rows

    def look_for(self, numbers: Iterable[int]) -> None:
        """Read which of the rows with these numbers there are by now, and forget the others."""
        self._rows = dict(self._kept(numbers))

    @property
    def begun(self) -> bool:
        """Whether the run's own row can be seen."""
        return bool(_rows(self._files, f"{self._root}/runs/{self._folder}/{_ROW.format(self.run.run_id)}", ["run_id"]))

    @property
    def numbers(self) -> Mapping[Key, int]:
        """The number of each scenario's files."""
        return {key: kept.number for key, kept in self.rows.items()}

    def finished(self, scenario: Scenario) -> bool:
        """Whether a row says that it was measured successfully; it may have been under other conditions, see ``find``."""
        kept = self.rows.get((scenario.id, scenario.repeat))
        return kept is not None and kept.status == Status.OK

    def find(self, case: Case) -> tuple[Record, Trace] | None:
        """The record and what is left of the trace; None unless exactly this was measured successfully."""
        scenario = case.scenario
        kept = self.rows.get((scenario.id, scenario.repeat))
        if kept is None or kept.status != Status.OK or kept.scenario_key != case.key:
            return None
        (row,) = self._read("scenarios", kept.number)
        with suppress(LookupError, TypeError, ValueError, AttributeError):  # changed since: it is measured again
            return restored(scenario, row, *(self._read(table, kept.number) for table in ("samples", "outputs")))
        return None

    def clear(self) -> None:
        """Remove what a killed process left unfinished: samples and answers without an ok row, and partial files."""
        whole = {kept.number for kept in self.rows.values() if kept.status == Status.OK}
        for table in TABLES:
            for path in files_below(self._files, f"{self._root}/{table}/{self._folder}"):
                name = path.rpartition("/")[2]
                half = name.startswith(f".{self.run.run_id}-") and name.endswith(".partial")
                if half or (table in ("samples", "outputs") and _number(name, self.run.run_id) not in (None, *whole)):
                    self._files.delete_file(path)

    def _kept(self, numbers: Iterable[int]) -> Iterator[tuple[Key, Kept]]:
        for number in numbers:
            rows = self._read("scenarios", number, ["scenario_id", "repeat", "scenario_key", "status"])
            if len(rows) > 1 or any(row["status"] not in list(Status) for row in rows):
                raise _changed(self._path("scenarios", number))
            for row in rows:
                kept = Kept(number=number, scenario_key=row["scenario_key"], status=Status(row["status"]))
                yield (row["scenario_id"], row["repeat"]), kept

    def _read(self, table: str, number: int, columns: list[str] | None = None) -> list[dict[str, Any]]:
        return _rows(self._files, self._path(table, number), columns)

    def _path(self, table: str, number: int) -> str:
        return f"{self._root}/{table}/{self._folder}/{self.run.run_id}-{number:05d}.parquet"


def resume(root: str, name_or_last: str, run: Run) -> Earlier:
    """The stored run ``name_or_last``, an id or ``last``, for a session that would otherwise be the new ``run``.

    UsageError when there is none, or when it was started on another machine, with other versions or another effort.
    """
    files, base = filesystem(root)
    runs = {match["run"]: path for path in files_below(files, f"{base}/runs") if (match := _match(path))}
    if name_or_last != LAST and name_or_last not in runs:
        nothing = UsageError(f"there is no run to resume under {root!r}; start one without --resume")
        raise unknown_name("run", name_or_last, runs) if runs else nothing
    name = _last_of_machine(files, base, runs, run.machine.fingerprint) if name_or_last == LAST else name_or_last
    if name is None:
        raise UsageError(f"there is no run of this machine to resume under {root!r}; start one without --resume")
    row = _own_row(files, runs[name])
    _require_same(row, run)
    known = row["command"].split("; ")
    same = replace(
        run, run_id=name, started_at=row["started_at"], run_number=row.get("run_number"),
        command=row["command"] if run.command in known else f"{row['command']}; {run.command}",
        commit=", ".join(dict.fromkeys(filter(None, (*row["commit"].split(", "), run.commit)))),
    )  # fmt: skip
    place = f"{runs[name].rpartition('/')[0]}/{_ROW.format(name)}"
    if runs[name] != place:  # older versions gave this file another number
        files.move(runs[name], place)
    return Earlier(root, same, row["planned"])


def hold(root: str, run: Run) -> IO[bytes] | None:
    """Lock the run against other processes until the stream is closed or this process ends.

    None where the store does not support locks. UsageError when another process holds the lock.
    """
    files, base = filesystem(root)
    path = Path(base, "runs", f"date={run.started_at:%Y-%m-%d}", _ROW.format(run.run_id))
    if files.type_name != "local":
        return None
    import fcntl

    stream = path.open("rb")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise UsageError(
            f"run {run.run_id} is being measured by another process; wait until it ends, or start one without --resume"
        ) from None
    except OSError:  # such as a network file system without locks
        stream.close()
        return None
    return stream


def _last_of_machine(files: fs.FileSystem, root: str, runs: Collection[str], machine: str) -> str | None:
    """The last run of this machine by number; runs from before there were numbers come first, ordered by start.

    A file that cannot be read does not count.
    """
    rows = own_rows(files, root, ("run_id", "run_number", "started_at", "machine")).to_pylist()
    of_machine = [row for row in rows if row["machine"] == machine and row["run_id"] in runs]
    keys = [(row["run_number"] or 0, str(row["started_at"] or ""), row["run_id"]) for row in of_machine]
    return max(keys)[2] if keys else None


def _own_row(files: fs.FileSystem, path: str) -> dict[str, Any]:
    """A run's row of table ``runs``; StoreError where it is not as it was written."""
    rows = _rows(files, path)
    texts = ("run_id", "machine", "profile", "engine", "command", "commit")
    if len(rows) == 1 and all(isinstance(rows[0].get(name), str) for name in texts):
        (row,) = rows
        versions = _object(row.get("versions"))
        if isinstance(row.get("started_at"), datetime) and isinstance(row.get("planned"), int) and versions is not None:
            return {**row, "versions": versions}
    raise _changed(path)


def _object(text: object) -> dict[str, Any] | None:
    """The JSON object that a text holds; None if it holds none."""
    try:
        found = parse_json(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _changed(path: str) -> StoreError:
    return StoreError(f"{path} of the run to resume is not as it was written; remove it and resume again")


def _require_same(row: Mapping[str, Any], run: Run) -> None:
    """Raise UsageError unless machine, versions and effort are the same: the rows of one run are compared with each other."""
    before, now = row["versions"], run.versions
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    differing = {
        "on machine": (row["machine"], run.machine.fingerprint),
        "with profile": (row["profile"], run.profile),
        "with engine": (row["engine"], run.engine),
        **{f"with {name}": (before.get(name, "not installed"), now.get(name, "not installed")) for name in changed},
    }
    differences = [f"{how} {then} and not {here}" for how, (then, here) in differing.items() if then != here]
    if differences:
        raise UsageError(
            f"run {row['run_id']} was measured {', '.join(differences)}; resume it as it was started, or start a new one "
            "without --resume"
        )


def _match(path: str) -> re.Match[str] | None:
    return NAME.fullmatch(path.rpartition("/")[2])


def _number(name: str, run_id: str) -> int | None:
    match = NAME.fullmatch(name)
    return int(match["number"]) if match and match["run"] == run_id else None


def _rows(files: fs.FileSystem, path: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of one file; none where there is no such file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import fs

    if files.get_file_info(path).type != fs.FileType.File:
        return []
    try:
        with files.open_input_file(path) as stream:
            rows: list[dict[str, Any]] = pq.read_table(stream, columns=columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} of the run to resume cannot be read; remove it and resume again") from error
    return rows
