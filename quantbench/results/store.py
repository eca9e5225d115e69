"""Records to parquet and back: one explicit schema, one file per table and flush, each written atomically."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from quantbench.core.errors import StoreError
from quantbench.core.machine import Machine
from quantbench.core.outside import expanded
from quantbench.core.record import SCHEMA_VERSION, Missing, Output, Record, Sample, Status
from quantbench.core.scenario import Variant, at_batch
from quantbench.methods import METHODS
from quantbench.results.listing import files_by_day, files_of, list_files, own_rows
from quantbench.results.reading import as_frame, read_files
from quantbench.results.reading import plain as _plain
from quantbench.results.schema import schema

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyarrow import fs

_OF_AN_ARTIFACT: Mapping[str, str] = {
    "artifact_maker": "neither its place nor its files name who made it",
    "artifact_sha256": "its files were not hashed",
    "artifact_audit": "nothing wrong was found, or looked for: only GGUF files are audited, and not with profile brief",
    "artifact_note": "its files say what the original's say",
}
"""Facts of an artifact with a column each, and why one is null; in other rows they are null as there is no artifact."""
_FOUND = ("kernel", "kv_dtype", "checkpoint_dtype", "anchor", "waiting")
_ONE_ROW: Mapping[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
"""How one row is written: a codec, dictionary and statistics for each of 200 values would take longer than everything else."""
_MANY_ROWS: Mapping[str, Any] = {"compression": "zstd"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Facts that all rows of one session share."""

    machine: Machine
    versions: Mapping[str, str]
    command: str
    commit: str
    profile: str
    engine: str
    run_id: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:6]}")
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    run_number: int | None = None
    """Counts the runs of a store from 1, independent of the clock; the store assigns it when the run begins."""


class Store:
    """Writes ``root/<table>/date=YYYY-MM-DD/<run_id>-<n>.parquet``; ``root`` is a path or any URI that pyarrow supports.

    ``n`` stands for a scenario and repeat: a scenario measured again in the same run replaces its earlier files.
    """

    def __init__(self, root: str, run: Run, numbers: Mapping[tuple[str, int], int] | None = None) -> None:
        """Check that ``root`` is writable; StoreError if it is not.

        ``numbers`` are those that a resumed run had assigned, by scenario id and repeat.
        """
        self._run = run
        self._resumes = numbers is not None
        self._numbers = dict(numbers or {})
        try:
            self._files, self._root = filesystem(root)
            self._files.create_dir(self._root, recursive=True)
            probe = f"{self._root}/.{run.run_id}-{uuid4().hex[:8]}"  # machines of a fleet may open the store at once
            with self._files.open_output_stream(probe) as stream:
                stream.write(b"")
            self._files.delete_file(probe)
        except OSError as error:
            raise StoreError(
                f"results cannot be written to {root!r} ({_plain(error)}); choose another location with --results"
            ) from error

    @property
    def run(self) -> Run:
        """The run being written."""
        return self._run

    @property
    def run_id(self) -> str:
        """The id of the run being written."""
        return self._run.run_id

    def take_numbers(self, numbers: Mapping[tuple[str, int], int]) -> None:
        """Let others say which numbers the files of these scenarios and repeats have."""
        self._numbers.update(numbers)

    def append(self, record: Record, *, instrument_check: bool) -> None:
        """Flush one record's rows to the three tables. StoreError when the disk is full or the location is gone."""
        row = self.row(record, instrument_check=instrument_check)
        shared = {name: row[name] for name in ("run_id", "scenario_id", "scenario_key", "repeat")}
        number = self._numbers.setdefault((record.scenario.id, record.repeat), 1 + max(self._numbers.values(), default=-1))
        self._write("samples", number, _columns(shared, record.samples))
        self._write("outputs", number, _columns(shared, record.outputs))
        self._write("scenarios", number, {name: [value] for name, value in row.items()})

    def row(self, record: Record, *, instrument_check: bool) -> dict[str, Any]:
        """The record's row of ``scenarios``, by column; what was not measured is None."""
        return {
            "run_id": self._run.run_id,
            "scenario_id": record.scenario.id,
            "scenario_key": record.scenario_key,
            "repeat": record.repeat,
            **_scenario_row(record, self._run),
            "instrument_check": instrument_check,
        }

    def begin(self, *, planned: int) -> None:
        """Write the run's own row as it should stay if the process is killed: interrupted, without an end or counts.

        A run that is not resumed gets its number here, one above the highest in the store. Two runs that begin at once may get
        the same number; ``in_order`` then goes by their start.
        """
        if not self._resumes:
            numbers = own_rows(self._files, self._root, ["run_number"])["run_number"].to_pylist()
            self._run = replace(self._run, run_number=1 + max((each or 0 for each in numbers), default=0))
        self._write_run(planned=planned, finished=None, ok=None, interrupted=True, finished_at=None)

    def finish(self, *, planned: int, finished: int, ok: int, interrupted: bool) -> None:
        """Write the run's own row with its end and counts."""
        self._write_run(planned=planned, finished=finished, ok=ok, interrupted=interrupted, finished_at=datetime.now(UTC))

    def _write_run(
        self, *, planned: int, finished: int | None, ok: int | None, interrupted: bool, finished_at: datetime | None
    ) -> None:
        run = self._run
        row = {
            "run_id": run.run_id, "run_number": run.run_number, "started_at": run.started_at, "finished_at": finished_at,
            "command": run.command, "commit": run.commit, "profile": run.profile, "engine": run.engine,
            "planned": planned, "finished": finished, "ok": ok, "interrupted": interrupted,
            "machine": run.machine.fingerprint, "machine_facts": json.dumps(asdict(run.machine)),
            "versions": json.dumps(dict(run.versions)), "schema_version": SCHEMA_VERSION,
        }  # fmt: skip
        self._write("runs", 0, {name: [value] for name, value in row.items()})

    def _write(self, table: str, number: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Write ``columns`` as the file of that number, replacing any earlier one; without columns, remove it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = f"{self._root}/{table}/date={self._run.started_at:%Y-%m-%d}"
        name = f"{self._run.run_id}-{number:05d}.parquet"
        partial = f"{folder}/.{name}.partial"
        try:
            if not columns:
                self._remove(f"{folder}/{name}")
                return
            rows = _table(columns, schema(table))
            self._files.create_dir(folder, recursive=True)
            with self._files.open_output_stream(partial) as stream:
                how = _ONE_ROW if len(rows) == 1 else _MANY_ROWS
                pq.write_table(rows, stream, write_page_checksum=True, **how)
            _flush_to_disk(self._files, partial)
            self._files.move(partial, f"{folder}/{name}")
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._files.delete_file(partial)
            if not isinstance(error, (OSError, pa.ArrowException)):  # such as Ctrl-C
                raise
            raise StoreError(
                f"results of this scenario could not be written to {folder!r} ({_plain(error)}); make room or choose another "
                "location with --results; rows written before are safe"
            ) from error

    def _remove(self, path: str) -> None:
        from pyarrow import fs

        if self._files.get_file_info(path).type == fs.FileType.File:
            self._files.delete_file(path)


def load(path: str = "results", table: str = "scenarios", *, run: str | Collection[str] | None = None) -> pd.DataFrame:
    """A table of all runs under ``path``, or only of the ``run`` or runs with that id, as a DataFrame with the schema's dtypes.

    Files of other runs than those named are not opened. Integers and booleans have pandas' nullable dtypes. Columns that an
    older file lacks are null in its rows; further columns, of a newer version or of a metric that is not installed here, come
    last. Files that cannot be read (truncated, not parquet, of another table) are skipped with a warning. Raises StoreError
    when there is no such table, no readable file, or no row of any run named.
    """
    files, root = filesystem(path)
    runs = [run] if isinstance(run, str) else None if run is None else list(run)
    folder = f"{root}/{table}"
    of_days = files_by_day(files, folder, runs or ())  # listing the others of a large store takes longer than reading these
    everything = of_days or list_files(files, folder)
    paths = everything if of_days or runs is None else files_of(files, root, everything, runs)
    rows, sentences = read_files(files, paths, table, runs=runs)
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=2)
    if runs and everything and not (rows is not None and len(rows)):
        raise none_of(runs, path, table)
    if rows is None:
        raise no_results(path, table)
    return as_frame(rows)


def no_results(path: str, table: str = "scenarios") -> StoreError:
    """The error where nothing is stored of a table, or nothing that can be read."""
    return StoreError(f"no results of table {table!r} under {path!r}; run the benchmark first, or set --results")


def none_of(runs: Sequence[str], path: str, table: str = "scenarios") -> StoreError:
    """The error where a table has no row of these runs, or none that can be read."""
    names = ", ".join(runs)
    if table == "scenarios":
        return StoreError(f"{path} has no row of run {names}: no scenario of it was finished; resume it, or choose another run")
    return StoreError(f"run {names} kept no rows in table {table!r} under {path!r}")


def in_order(frame: pd.DataFrame) -> list[str]:
    """The ids of the runs in ``frame``, the latest last: by their number in the store, since a clock may have been set back.

    Runs from before there were numbers come first. Runs with the same number are ordered by start, then by id.
    """
    told = frame[[name for name in ("run_id", "run_number", "started_at") if name in frame]].drop_duplicates()
    numbered = told["run_number"].fillna(0) if "run_number" in told else [0] * len(told)
    keys: dict[str, tuple[int, Any, str]] = {}
    for run, number, started in zip(told["run_id"], numbered, told["started_at"], strict=True):
        if isinstance(run, str):
            key = (int(number), started, run)
            keys[run] = max(keys.get(run, key), key)
    return sorted(keys, key=keys.__getitem__)



def _scenario_row(record: Record, run: Run) -> dict[str, Any]:
    scenario = record.scenario
    variant = record.variant or scenario.variant
    bits = _bits(variant)
    found = {**record.values, "predicted_weight_bytes": record.predicted_weight_bytes}
    values = {name: None if isinstance(value, Missing) else value for name, value in found.items()}
    reasons = {name: value.reason for name, value in found.items() if isinstance(value, Missing)}
    if record.status == Status.OK:
        reasons |= {name: "the worker reported none" for name in (*_FOUND, "threads", "context") if not record.facts.get(name)}
        if not record.facts.get("device"):
            reasons["device_found"] = "the method does not say where its weights are"
        if run.run_number is None:
            reasons["run_number"] = "the run began before runs were numbered"
        if variant.artifact:
            reasons |= {name: why for name, why in _OF_AN_ARTIFACT.items() if not record.facts.get(name)}
        if bits is None:
            reasons["bits"] = "this precision has no nominal number of bits"
    conditions = asdict(scenario.conditions)
    facts = dict(record.facts)
    used = {name: facts.pop(name, None) for name in (*_FOUND, *_OF_AN_ARTIFACT)}
    machine = run.machine
    where: dict[str, str | None] = {
        "device": conditions["device"], "device_found": facts.pop("device", "") or None,
        "cpu": machine.cpu, "gpus": ", ".join(machine.gpus), "isa": machine.isa,
    }  # fmt: skip
    if elsewhere := facts.pop("elsewhere", ""):
        where = dict.fromkeys(where)
        reasons |= dict.fromkeys(where, elsewhere)
    return {
        **{
            name: conditions[name]
            for name in ("reference", "output_tokens", "answer_tokens", "continuation_tokens", "answered_prompts", "seed")
        },
        **{name: used[name] or None for name in used},
        "threads": int(facts.pop("threads", 0)) or None,
        "context": int(facts.pop("context", 0)) or None,
        "started_at": run.started_at,
        "run_number": run.run_number,
        "model": scenario.model,
        "method": variant.method or None,
        "precision": variant.precision or None,
        "artifact": variant.artifact or None,
        "prompts": at_batch(scenario.prompts, scenario.batch),
        "batch": scenario.batch,
        "attempts": record.attempts,
        "status": str(record.status),
        "reason": record.reason or None,
        "traceback": record.traceback or None,
        "control": scenario.variant.control,
        "is_reference": scenario.is_reference,
        "bits": bits,
        "facts": json.dumps(facts),
        "null_reasons": json.dumps(reasons),
        "machine": run.machine.fingerprint,
        **where,
        "versions": json.dumps(dict(run.versions)),
        "schema_version": SCHEMA_VERSION,
        **values,
    }


def _bits(variant: Variant) -> float | None:
    return METHODS[variant.method].precision(variant.precision).bits if variant.method else None


def _columns(shared: Mapping[str, Any], items: Sequence[Sample] | Sequence[Output]) -> dict[str, list[Any]]:
    """The columns of a table of ``items``, with the ``shared`` values in every row; none without items."""
    if not items:
        return {}
    columns = {name: [value] * len(items) for name, value in shared.items()}
    return columns | {each.name: [getattr(item, each.name) for item in items] for each in fields(items[0])}


def _table(columns: Mapping[str, Sequence[Any]], wanted: pa.Schema) -> pa.Table:
    import pyarrow as pa

    rows = len(next(iter(columns.values())))
    arrays = [_array(columns[each.name], each.type) if each.name in columns else pa.nulls(rows, each.type) for each in wanted]
    return pa.Table.from_arrays(arrays, schema=wanted)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array[Any]:
    """The values; a lone surrogate in a text (from an odd path, say) becomes a question mark."""
    import pyarrow as pa

    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        return pa.array([value if value is None else value.encode("utf-8", "replace").decode() for value in values], kind)


def filesystem(root: str) -> tuple[fs.FileSystem, str]:
    """The file system that holds the results, and their path in it; StoreError for a URI that pyarrow cannot reach."""
    from pyarrow import fs

    if "://" in root:
        try:
            found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(root)
        except (ValueError, OSError) as error:
            raise StoreError(f"pyarrow cannot reach {root!r} ({_plain(error)}); give a folder or a URI it supports") from error
        return found
    return fs.LocalFileSystem(), str(expanded(root).resolve())


def _flush_to_disk(files: fs.FileSystem, path: str) -> None:
    import os

    if files.type_name == "local":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
