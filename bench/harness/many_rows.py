"""A results folder of 100,000 rows in 1,000 runs, made up from a seed.

    python bench/harness/many_rows.py FOLDER stored|merged [RUNS]

``stored``: a file a scenario in each table, as quantbench writes them. Runs older than the last 110, which no command opens,
have links to the files of the first one: their names count, and 20 GB are not written. ``merged``: somebody has read each table
and written it again with pandas, as one file, so that no file's name tells a run.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from quantbench.core.record import Record

RUNS = 1000
OPENED = 110
"""Runs that get files of their own: a report follows a scenario through 100."""

SEED = 19
FIRST = datetime(2024, 1, 1, 3, tzinfo=UTC)
SUBJECTS = (("canary", "ten"), ("canary", "mixed"), ("dummy:tinyllama-1.1b", "ten"), ("dummy:tinyllama-1.1b", "mixed"))
VARIANTS = 25
"""On each subject, the control and one that was skipped among them."""

ANSWERS, GAPS = 10, 320
"""Rows of ``outputs`` and ``samples`` for a scenario; merged, where they are all in one file, a tenth of that."""

_ONE_ROW: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
_UPGRADED_EVERY = 90
"""Runs after which a library's version changes."""


def run_id(number: int) -> str:
    """The id of the run with that number, counted from 0; one began each day."""
    return f"{FIRST + timedelta(days=number):%Y%m%dT%H%M%S}-{number:06x}"


def stored(folder: Path, runs: int) -> None:
    """One file a scenario in each table."""
    import pyarrow.parquet as pq

    rows = _template()
    originals: dict[str, list[Path]] = {}
    for number in range(runs):
        linked = 0 < number < runs - OPENED
        tables = {} if linked else _tables(rows, number, answers=ANSWERS, gaps=GAPS)
        for table, one in {"scenarios": 1, "outputs": ANSWERS, "samples": GAPS}.items():
            paths = _paths(folder, table, number, len(rows))
            for index, path in enumerate(paths):
                if linked:
                    path.hardlink_to(originals[table][index])
                else:
                    how = _ONE_ROW if one == 1 else {"compression": "zstd"}
                    pq.write_table(tables[table].slice(index * one, one), path, write_page_checksum=True, **how)
            originals.setdefault(table, paths)
        pq.write_table(_own_row(number, len(rows)), _paths(folder, "runs", number, 1)[0], write_page_checksum=True, **_ONE_ROW)


def merged(folder: Path, runs: int) -> None:
    """One file a table."""
    import pyarrow as pa

    rows = _template()
    tables: dict[str, list[pa.Table]] = {}
    for number in range(runs):
        made = _tables(rows, number, answers=ANSWERS // 10, gaps=GAPS // 10)
        for table, part in {**made, "runs": _own_row(number, len(rows))}.items():
            tables.setdefault(table, []).append(part)
    for table, parts in tables.items():
        (folder / table).mkdir(parents=True)
        pa.concat_tables(parts).to_pandas().to_parquet(folder / table / "all.parquet")


def _paths(folder: Path, table: str, number: int, count: int) -> list[Path]:
    """The files of a run's table, whose folder is made."""
    day = folder / table / f"date={FIRST + timedelta(days=number):%Y-%m-%d}"
    day.mkdir(parents=True)
    return [day / f"{run_id(number)}-{index:05d}.parquet" for index in range(count)]


def _template() -> pa.Table:
    """The rows of one run, by the store's own way from a record to a row."""
    import pyarrow as pa

    from quantbench.core.machine import Machine
    from quantbench.results.schema import schema
    from quantbench.results.store import Run, Store

    machine = Machine(cpu="Example CPU", cpus=2, memory_bytes=2**33, isa="avx2", system="Linux x86_64")
    run = Run(machine=machine, versions={}, command="harness", commit="", profile="default", engine="process")
    with tempfile.TemporaryDirectory() as name:
        store = Store(name, run)
        rows = [store.row(record, instrument_check=record.scenario.model == "canary") for record in _records()]
    return pa.Table.from_pylist(rows, schema=schema("scenarios"))


def _records() -> Iterator[Record]:
    """Every variant of every subject: fewer bits are faster and less exact; the last variant of each was skipped."""
    from quantbench.core.record import Missing, Record, Status
    from quantbench.core.scenario import Scenario, Variant
    from quantbench.methods import METHODS
    from quantbench.metrics import all_columns

    methods = [method for method in METHODS if not method.endpoint]
    offered = [(each.bits or 16, method.name, each.name) for method in methods for each in method.precisions]
    offered.sort(key=lambda each: (each[1:] != ("torch", "fp32"), -each[0], each))
    chosen = [(32.0, Variant(method="torch", precision="fp32", control=True))]
    chosen += [(bits, Variant(method=method, precision=precision)) for bits, method, precision in offered[: VARIANTS - 1]]
    made: dict[str, Any] = {"float": 0.5, "int": 10**9, "string": "a text", "bool": False}
    no_gpu = Missing("it was measured on a CPU, which does not report this figure; run it on a GPU for that")
    known = {each.name: no_gpu if "gpu" in each.name or "device" in each.name else made[each.kind] for each in all_columns()}
    facts = {"kernel": "ggml-cpu", "threads": "2", "context": "512", "device": "cpu", "anchor": "torch/fp32"}
    for model, prompts in SUBJECTS:
        for bits, variant in chosen:
            scenario = Scenario(model=model, variant=variant, prompts=prompts)
            key = hashlib.sha256(scenario.id.encode()).hexdigest()
            if variant is chosen[-1][1]:
                why = "this machine has no GPU; run it where there is one"
                yield Record(scenario=scenario, scenario_key=key, status=Status.SKIPPED, reason=why)
                continue
            own = {"weight_bytes": int(1e9 * bits / 8), "kld_mean": 2.0**-bits}
            own |= {"decode_tps": 1e3 / bits, "decode_ratio": 32 / bits}
            yield Record(scenario=scenario, scenario_key=key, status=Status.OK, values={**known, **own}, facts=facts)


def _tables(template: pa.Table, number: int, *, answers: int, gaps: int) -> dict[str, pa.Table]:
    """A run's rows of each table: the template's, with figures that differ by some percent."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from quantbench.results.schema import schema

    rng = np.random.default_rng([SEED, number])
    count = len(template)
    versions = {f"library-{index}": "1.0" for index in range(40)} | {"torch": f"2.{number // _UPGRADED_EVERY}"}
    told = {
        "run_id": run_id(number), "run_number": number + 1, "started_at": FIRST + timedelta(days=number),
        "versions": json.dumps(versions),
    }  # fmt: skip
    columns = {}
    for field in schema("scenarios"):
        values = template[field.name]
        if field.name in told:
            values = pa.array([told[field.name]] * count, field.type)
        elif pa.types.is_floating(field.type) and field.name not in ("bits", "kld_mean"):
            values = pc.multiply(values, pa.array(rng.normal(1, 0.02, count)))
        columns[field.name] = values
    scenarios = pa.table(columns, schema=schema("scenarios"))
    return {
        "scenarios": scenarios,
        "outputs": _hung(scenarios, "outputs", answers, {
            "index": np.tile(np.arange(answers), count), "prompt": "a prompt " * 20, "reference_text": "an answer " * 20,
            "variant_text": "an answer " * 20, "exact_match": True, "token_match": 1.0, "chrf": 100.0, "scored_tokens": 128,
            "kld_mean": 0.06, "prompt_tokens": list(range(32)), "kld": [0.06] * 128,
        }),
        "samples": _hung(scenarios, "samples", gaps, {
            "phase": "gap", "round": np.tile(np.arange(gaps) // 31, count), "index": np.tile(np.arange(gaps), count),
            "value_s": rng.lognormal(-6, 0.05, gaps * count),
        }),
    }  # fmt: skip


def _hung(scenarios: pa.Table, table: str, each: int, values: dict[str, Any]) -> pa.Table:
    """So many rows of another table for each scenario; what is no array is the same in every row."""
    import numpy as np
    import pyarrow as pa

    from quantbench.results.schema import schema

    places = np.repeat(np.arange(len(scenarios)), each)
    taken = scenarios.select(["run_id", "scenario_id", "scenario_key", "repeat"]).take(places)
    count = len(taken)
    columns: dict[str, Any] = {}
    for field in schema(table):
        if field.name in values:
            value = values[field.name]
            columns[field.name] = pa.array(value if isinstance(value, np.ndarray) else [value] * count, field.type)
        else:
            known = field.name in taken.column_names
            columns[field.name] = taken[field.name] if known else pa.nulls(count, field.type)
    return pa.table(columns, schema=schema(table))


def _own_row(number: int, count: int) -> pa.Table:
    """The run's own row."""
    import pyarrow as pa

    from quantbench.results.schema import schema

    began = FIRST + timedelta(days=number)
    row = {
        "run_id": run_id(number), "run_number": number + 1, "started_at": began, "finished_at": began + timedelta(hours=1),
        "command": "harness", "planned": count, "finished": count, "ok": count - len(SUBJECTS), "interrupted": False,
        "profile": "default", "engine": "process", "schema_version": 3,
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=schema("runs"))


if __name__ == "__main__":
    {"stored": stored, "merged": merged}[sys.argv[2]](Path(sys.argv[1]), int(sys.argv[3]) if sys.argv[3:] else RUNS)
