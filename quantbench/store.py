"""Records to parquet and back: one explicit schema, one file per flush, nothing ever rewritten."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from quantbench.errors import StoreError
from quantbench.machine import Machine
from quantbench.methods import METHODS
from quantbench.record import SCHEMA_VERSION, Missing, Record, Status
from quantbench.scenario import Scenario
from quantbench.schema import schema

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyarrow import fs

_FOUND = ("kernel", "kv_dtype", "checkpoint_dtype", "anchor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What all rows of one session share."""

    machine: Machine
    versions: Mapping[str, str]
    command: str
    commit: str
    profile: str
    engine: str
    run_id: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:6]}")
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Store:
    """Appends to ``root/<table>/date=YYYY-MM-DD/<run_id>-<n>.parquet``; ``root`` is a path or any URI pyarrow knows."""

    def __init__(self, root: str, run: Run) -> None:
        """Check that the place can be written; StoreError if it cannot."""
        self._run = run
        self._count = 0
        try:
            self._files, self._root = _filesystem(root)
            self._files.create_dir(self._root, recursive=True)
            probe = f"{self._root}/.{run.run_id}"
            with self._files.open_output_stream(probe) as stream:
                stream.write(b"")
            self._files.delete_file(probe)
        except OSError as error:
            raise StoreError(
                f"results cannot be written to {root!r} ({_plain(error)}); choose another place with --results"
            ) from error

    def append(self, record: Record, *, instrument_check: bool) -> None:
        """Flush one record's rows to the three tables. StoreError when the disk is full or the place went away."""
        shared = {
            "run_id": self._run.run_id,
            "scenario_id": record.scenario.id,
            "scenario_key": record.scenario_key,
            "repeat": record.repeat,
        }
        self._write("samples", [{**shared, **asdict(sample)} for sample in record.samples])
        self._write("outputs", [{**shared, **asdict(output)} for output in record.outputs])
        self._write("scenarios", [{**shared, **_scenario_row(record, self._run), "instrument_check": instrument_check}])
        self._count += 1

    def finish(self, *, planned: int, finished: int, ok: int, interrupted: bool) -> None:
        """Write the run's own row."""
        run = self._run
        row = {
            "run_id": run.run_id, "started_at": run.started_at, "finished_at": datetime.now(UTC),
            "command": run.command, "commit": run.commit, "profile": run.profile, "engine": run.engine,
            "planned": planned, "finished": finished, "ok": ok, "interrupted": interrupted,
            "machine": run.machine.fingerprint, "machine_facts": json.dumps(asdict(run.machine)),
            "versions": json.dumps(dict(run.versions)), "schema_version": SCHEMA_VERSION,
        }  # fmt: skip
        self._write("runs", [row])

    def _write(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = f"{self._root}/{table}/date={self._run.started_at:%Y-%m-%d}"
        name = f"{self._run.run_id}-{self._count:05d}.parquet"
        partial = f"{folder}/.{name}.partial"
        try:
            self._files.create_dir(folder, recursive=True)
            with self._files.open_output_stream(partial) as stream:
                pq.write_table(pa.Table.from_pylist(_storable(rows), schema=schema(table)), stream, compression="zstd")
            _flush_to_disk(self._files, partial)
            self._files.move(partial, f"{folder}/{name}")
        except (OSError, pa.ArrowException) as error:
            with contextlib.suppress(OSError):
                self._files.delete_file(partial)
            raise StoreError(
                f"results of this scenario could not be written to {folder!r} ({_plain(error)}); make room or choose another "
                "place with --results; rows written before are safe"
            ) from error


def load(path: str = "results", table: str = "scenarios") -> pd.DataFrame:
    """A table of all runs under ``path`` as a DataFrame with the schema's dtypes.

    Integers with nulls have pandas' nullable Int64. Files that cannot be read (cut short, not parquet) are skipped with a
    warning. Raises StoreError when there is no such table or no readable file.
    """
    import pandas as pd
    import pyarrow as pa

    wanted = schema(table)
    files, root = _filesystem(path)
    tables = list(_readable(files, f"{root}/{table}", wanted))
    if not tables:
        raise StoreError(f"no results of table {table!r} under {path!r}; run the benchmark first, or give --results")
    whole = pa.concat_tables(tables)
    integers = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype(), pa.string(): pd.StringDtype(na_value=float("nan"))}
    frame: pd.DataFrame = whole.to_pandas(types_mapper=integers.get)
    return frame


def _readable(files: fs.FileSystem, folder: str, wanted: pa.Schema) -> Iterable[pa.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import fs

    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    infos = sorted(files.get_file_info(selector), key=lambda info: info.path)
    for info in infos:
        if info.type == fs.FileType.File and info.path.endswith(".parquet"):
            try:
                with files.open_input_file(info.path) as stream:
                    table = _conform(pq.read_table(stream), wanted)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
                warnings.warn(f"{info.path} cannot be read and is left out ({_plain(error)})", stacklevel=3)
                continue
            yield table


def _conform(found: pa.Table, wanted: pa.Schema) -> pa.Table:
    """Add the columns that an older file lacks, as nulls; columns are only ever added, so nothing is dropped."""
    import pyarrow as pa

    have = set(found.column_names)  # pyarrow makes the list anew each time it is asked for
    columns = [
        found.column(field.name).cast(field.type) if field.name in have else pa.nulls(len(found), field.type)
        for field in wanted
    ]
    return pa.Table.from_arrays(columns, schema=wanted)


def _scenario_row(record: Record, run: Run) -> dict[str, Any]:
    scenario = record.scenario
    found = {**record.values, "predicted_weight_bytes": record.predicted_weight_bytes}
    values = {name: None if isinstance(value, Missing) else value for name, value in found.items()}
    reasons = {name: value.reason for name, value in found.items() if isinstance(value, Missing)}
    if record.status == Status.OK:
        reasons |= {name: "the worker found none" for name in (*_FOUND, "threads", "context") if not record.facts.get(name)}
        if not record.facts.get("device"):
            reasons["device_found"] = "the method does not say where its weights are"
        if _bits(scenario) is None:
            reasons["bits"] = "this precision promises no number of bits"
    conditions = asdict(scenario.conditions)
    facts = dict(record.facts)
    used = {name: facts.pop(name, None) for name in _FOUND}
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
            for name in ("reference", "output_tokens", "answer_tokens", "continuation_tokens", "seed")
        },
        **{name: used[name] or None for name in used},
        "threads": int(facts.pop("threads", 0)) or None,
        "context": int(facts.pop("context", 0)) or None,
        "started_at": run.started_at,
        "model": scenario.model,
        "method": scenario.variant.method,
        "precision": scenario.variant.precision,
        "prompts": scenario.prompts,
        "status": str(record.status),
        "reason": record.reason or None,
        "traceback": record.traceback or None,
        "control": scenario.variant.control,
        "is_reference": scenario.is_reference,
        "bits": _bits(scenario),
        "facts": json.dumps(facts),
        "null_reasons": json.dumps(reasons),
        "machine": run.machine.fingerprint,
        **where,
        "versions": json.dumps(dict(run.versions)),
        "schema_version": SCHEMA_VERSION,
        **values,
    }


def _bits(scenario: Scenario) -> float | None:
    return METHODS[scenario.variant.method].precision(scenario.variant.precision).bits


def _storable(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose texts are valid Unicode: a lone surrogate, of an odd path say, becomes a question mark."""
    return [
        {name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value for name, value in row.items()}
        for row in rows
    ]


def _filesystem(root: str) -> tuple[fs.FileSystem, str]:
    from pathlib import Path

    from pyarrow import fs

    if "://" in root:
        try:
            found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(root)
        except (ValueError, OSError) as error:
            raise StoreError(f"pyarrow cannot reach {root!r} ({_plain(error)}); give a folder or a URI it knows") from error
        return found
    return fs.LocalFileSystem(), str(Path(root).expanduser().resolve())


def _flush_to_disk(files: fs.FileSystem, path: str) -> None:
    import os

    if files.type_name == "local":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _plain(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
