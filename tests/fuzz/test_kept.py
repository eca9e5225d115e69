"""What quantbench wrote, and somebody changed: jobs, traces, references, results, reports of pytest-benchmark, claims."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from quantbench import tables
from quantbench.advice.decision import decide
from quantbench.claims.marks import amount
from quantbench.core.job import JOB_FILE, Checkpoint, Failure, Job, Task
from quantbench.core.machine import Machine
from quantbench.core.record import Output, Record, Sample, Status
from quantbench.core.scenario import Conditions, Effort, Scenario, Variant
from quantbench.core.trace import Answer, Reference, Trace
from quantbench.core.wire import plain, read
from quantbench.export import EXPORTERS, export
from quantbench.judge.compare import compare, parse_threshold, show
from quantbench.judge.compare.sides import load_side
from quantbench.results.resume import resume
from quantbench.results.runs import Runs
from quantbench.results.schema import TABLES, schema
from quantbench.results.store import Run, Store, load
from quantbench.tables.render import FORMATS, render

if TYPE_CHECKING:
    from collections.abc import Callable

JOB = Job(
    kind="measure", checkpoint=Checkpoint(name="m", kind="hf", path=Path("m"), revision="r", content_hash="c"),
    variant=Variant(method="torch", precision="fp32"), conditions=Conditions(), effort=Effort(),
    tasks=(Task(prompts_name="two", prompts=("a", "b"), reference=Path("ref")),), preloaded={"torch": 1.5}, root=(1, 2),
)  # fmt: skip
TRACE = {
    "import_s": 1.0, "load_s": 1.0, "measured_s": 2.0, "weights": None, "weight_bytes_running": 5, "peak": None,
    "anchor": "torch/fp32", "rounds": [], "answers": [], "columns": None, "score_s": [0.5], "absent": {"peak": "why"},
    "facts": {"kernel": "k"},
}  # fmt: skip
REFERENCE = Reference(
    parameters=1, checkpoint_dtype="f32", context_limit=9, prompt_tokens=((1, 2),), continuations=((3,),),
    answers=(Answer(prompt="p", prompt_tokens=(1, 2), tokens=(3,), text="t"),),
)  # fmt: skip
MACHINE = Machine(cpu="Example CPU", cpus=2, memory_bytes=8 * 2**30, isa="avx2", system="Linux x86_64")
RUN = Run(
    machine=MACHINE, versions={"torch": "2.13.0"}, command="c", commit="", profile="default", engine="process", run_id="one",
    run_number=1, started_at=datetime(2026, 3, 4, tzinfo=UTC),
)  # fmt: skip


@pytest.fixture
def written(fuzz: Any, contents: Any, world: Path) -> Callable[[str, str, Callable[[Path], object]], None]:
    """A file's content changed, and looked at."""

    def run(name: str, whole: str, look: Callable[[Path], object]) -> None:
        def check(content: bytes) -> None:
            (world / name).write_bytes(content)
            look(world / name)

        fuzz(contents(whole.encode()), check)
        assert fuzz.said

    return run


def test_job(written: Any) -> None:
    written(JOB_FILE, json.dumps(plain(JOB)), lambda path: Job.load(path.parent).spec.reference())


def test_trace(written: Any) -> None:
    written("trace-0.json", json.dumps(TRACE), Trace.load)


def test_reference(written: Any) -> None:
    written("reference.json", json.dumps(plain(REFERENCE)), Reference.load)


def test_failure(written: Any) -> None:
    content = json.dumps({"status": "error", "reason": "why", "traceback": ""})
    written("failure.json", content, lambda path: read(path, Failure))


BENCHMARKS = {
    "machine_info": {"quantbench": {"fingerprint": "f", "cpu": "c"}}, "datetime": "2026-01-02T03:04:05",
    "benchmarks": [
        {"name": f"test_call[{name}]", "extra_info": {
            "scenario_id": name, "scenario_key": "k", "status": "ok", "model": "m", "method": "gguf", "precision": "q8_0",
            "prompts": "ten", "decode_tps": 10.5, "decode_ratio": 1.5, "kld_mean": 0.01, "weight_bytes": 1000,
            "schema_version": 3,
        }}
        for name in ("a", "b", "b#2")
    ],
}  # fmt: skip


def test_benchmark_json(written: Any, world: Path) -> None:
    (world / "whole.json").write_text(json.dumps(BENCHMARKS))
    whole = load_side("whole.json", "results")

    def compared(path: Path) -> None:
        found = compare(whole, load_side(path.name, "results"))
        show.sentence(found), show.as_markdown(found, everything=True), show.as_junit(found), show.as_data(found)
        compare(load_side(path.name, "results"), whole)

    written("odd.json", json.dumps(BENCHMARKS), compared)


def test_threshold(fuzz: Any, texts: Any) -> None:
    fuzz(texts("decode=5%"), parse_threshold, short=50)
    assert fuzz.said


def test_claims(fuzz: Any, texts: Any) -> None:
    """A claimed amount that is none is a ValueError, as claims are shipped; but one that is may be anything."""

    def check(text: str) -> None:
        try:
            found = amount(text)
        except ValueError:
            return
        for value in (0.0, 3.5, 1e300):
            found.mark(value)

    fuzz(texts("3.5GB"), check, short=50)


def _record(name: str, status: Status = Status.OK) -> Record:
    method, _, precision = name.partition("/")
    said = Output(
        index=0, prompt="p", prompt_tokens=(1, 2), reference_tokens=(3, 4), variant_tokens=(3, 5), reference_text="a",
        variant_text="b", exact_match=False, first_divergence=1, token_match=0.5, chrf=50.0, scored_tokens=2, kld=(0.1, 0.2),
        kld_mean=0.15, top1_agreement=0.5, nll_mean=2.0,
    )  # fmt: skip
    values = {
        "weight_bytes": 1000, "parameters": 500, "decode_tps": 10.0, "decode_tps_low": 9.0, "decode_tps_high": 11.0,
        "decode_ratio": 1.2, "kld_mean": 0.1, "kld_mean_low": 0.05, "kld_mean_high": 0.2, "top1_agreement": 0.9, "ttft_s": 0.1,
        "bits_per_weight": 4.5, "load_s": 1.0, "peak_rss_bytes": 5000, "decode_path": "eager",
    }  # fmt: skip
    return Record(
        scenario=Scenario(model="canary", variant=Variant(method=method, precision=precision), prompts="ten"),
        scenario_key=name.ljust(64, "0"), status=status, reason="" if status is Status.OK else "why", values=values,
        facts={"anchor": "torch/fp32", "threads": "2", "kernel": "k"}, samples=(Sample("e2e", 0, 0, 0.5, 3),), outputs=(said,),
    )  # fmt: skip


@pytest.fixture
def stored(world: Path) -> Path:
    """Results of a run with three variants, two of them of a shape that decisions need."""
    store = Store(str(world / "whole"), RUN)
    store.begin(planned=3)
    for record in (_record("torch/fp32"), _record("gguf/q4_k_m"), _record("gguf/q8_0", Status.ERROR)):
        store.append(record, instrument_check=False)
    store.finish(planned=3, finished=3, ok=2, interrupted=False)
    return world / "whole"


_CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=8), st.binary(max_size=4),
    st.sampled_from(["x" * 50_000, "{", "[" * 20_000, '{"a": 1}', "ok", "skipped", "9" * 5000, "ten@" + "9" * 5000]),
    st.sampled_from(["text:", "\0", "../x", "tokens:1", "torch/fp32", "@", "\ud7ff\u202e"]),
    st.lists(st.floats(), max_size=3), st.lists(st.text(max_size=3), max_size=2), st.datetimes(),
)  # fmt: skip
_ODD_COLUMNS = st.lists(
    st.tuples(st.sampled_from(TABLES), st.integers(0, 400), _CELLS, st.sampled_from(["all", "one", "drop", "twice", "rename"])),
    min_size=1, max_size=5,
)  # fmt: skip


def _odd_table(table: pa.Table, place: int, cell: object, how: str) -> pa.Table:
    """A table of which one column is odd."""
    number = place % table.num_columns
    name = table.column_names[number]
    if how == "drop":
        return table.drop_columns([name])
    if how == "twice":
        return table.append_column(name, table.column(number))
    if how == "rename":
        return table.rename_columns([*table.column_names[:number], str(cell), *table.column_names[number + 1 :]])
    values = [cell] * len(table) if how == "all" else [cell, *table.column(number).to_pylist()[1:]]
    try:
        odd = pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError):
        odd = pa.array([cell] * len(table))
    return table.set_column(number, name, odd)


def _read_all(fuzz: Any, results: str) -> None:
    """All that reads results, each on its own."""
    fuzz.survives(lambda: [load(results, table) for table in TABLES])
    fuzz.survives(lambda: [Runs(results).latest(2), Runs(results).ids])
    try:
        frame = load(results)
    except Exception:  # noqa: BLE001 - it was held to be one of our own above
        return
    for act in (
        lambda: [render(made, form) for made in [tables.build(tables.ALL, frame)] for form in FORMATS],
        lambda: decide(frame, memory_bytes=2**30),
        lambda: show.as_markdown(compare(frame, frame), everything=True),
        lambda: [list(export(each.name, frame, "scenarios")) for each in EXPORTERS],
        lambda: resume(results, "one", replace(RUN, run_id="two")),
    ):
        fuzz.survives(act)


def test_parquet(fuzz: Any, world: Path, stored: Path) -> None:
    def check(changes: list[tuple[str, int, object, str]]) -> None:
        odd = world / "odd"
        shutil.rmtree(odd, ignore_errors=True)
        shutil.copytree(stored, odd)
        for name, place, cell, how in changes:
            path = sorted((odd / name).rglob("*.parquet"))[place % 2 - 1]
            pq.write_table(_odd_table(pq.ParquetFile(path).read(), place, cell, how), path)
        _read_all(fuzz, str(odd))

    fuzz(_ODD_COLUMNS, check, short=4)


def test_parquet_bytes(fuzz: Any, binaries: Any, world: Path, stored: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(schema("runs").empty_table(), sink)
    path = min((stored / "scenarios").rglob("*.parquet"))

    def check(content: bytes) -> None:
        path.write_bytes(content)
        fuzz.survives(lambda: load(str(stored)))
        (world / "one.parquet").write_bytes(content)
        fuzz.survives(lambda: load_side("one.parquet", "results"))

    fuzz(binaries(sink.getvalue()) | binaries(path.read_bytes()), check)
    assert fuzz.said
