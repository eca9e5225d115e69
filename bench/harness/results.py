"""What storing and reading results costs: seconds and megabytes, with rows that are made up here."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ratios import Result

if TYPE_CHECKING:
    from quantbench.core.record import Output, Record, Sample
    from quantbench.results.store import Store

ROWS = 1_000_000
SCENARIOS = 40
FILES = 1000
APPENDS = 21
SAMPLES = 10_000
"""Of a scenario: thirty rounds of ten prompts with 32 tokens each make 9600."""

COMPARE = """
import json, re, sys, time
import pandas, pyarrow.parquet, quantbench
from quantbench.judge.compare import compare
started = time.perf_counter()
samples = [quantbench.load(side, table="samples") for side in sys.argv[1:]]
found = compare(*(quantbench.load(side) for side in sys.argv[1:]))
seconds = time.perf_counter() - started
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
print(json.dumps({"seconds": seconds, "peak": peak, "rows": [len(each) for each in samples], "entries": len(found.entries)}))
"""
LOAD = """
import json, sys, time
import pandas, pyarrow.parquet, quantbench
started = time.perf_counter()
rows = len(quantbench.load(sys.argv[1]))
print(json.dumps({"seconds": time.perf_counter() - started, "rows": rows}))
"""


def large_runs() -> Iterator[Result]:
    """Two runs of 1,000,000 samples each loaded and compared by a fresh process in which the libraries are imported."""
    with tempfile.TemporaryDirectory() as name:
        sides = [str(Path(name, side)) for side in ("baseline", "candidate")]
        samples = _samples(ROWS // SCENARIOS)
        for side in sides:
            store = _store(side)
            for number in range(SCENARIOS):
                store.append(_record(number, samples, ()), instrument_check=True)
        found = _told(COMPARE, *sides)
    if found["rows"] != [ROWS, ROWS] or not found["entries"]:
        raise SystemExit(f"rows were lost on the way: {found}")
    yield Result("load and compare 2 x 1,000,000 samples (in s)", f"{found['seconds']:.2f} s", "", found["seconds"], "<= 3")
    yield Result("the same, peak memory (in MB)", f"{found['peak'] / 1e6:.0f} MB", "", found["peak"] / 1e6, "<= 1000")


def many_files() -> Iterator[Result]:
    """The rows of 1,000 scenarios, a file each, read by a fresh process in which the libraries are imported."""
    with tempfile.TemporaryDirectory() as name:
        store = _store(name)
        for number in range(FILES):
            store.append(_record(number, (), ()), instrument_check=True)
        found = _told(LOAD, name)
    if found["rows"] != FILES:
        raise SystemExit(f"rows were lost on the way: {found}")
    yield Result("read 1,000 files of scenarios (in s)", f"{found['seconds']:.2f} s", "", found["seconds"], "<= 3")


def appending() -> Iterator[Result]:
    """A scenario's rows with 10,000 samples and ten outputs, flushed to the disk."""
    samples, outputs = _samples(SAMPLES), _outputs()
    seconds = []
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as name:  # on a disk: a temporary folder may lie in memory
        store = _store(name)
        for number in range(APPENDS):
            record = _record(number, samples, outputs)
            started = time.perf_counter()
            store.append(record, instrument_check=True)
            seconds.append(time.perf_counter() - started)
    figure = median(seconds[1:])  # the first one also imports pyarrow
    yield Result("store a scenario's rows (in s)", f"{figure * 1e3:.1f} ms", "", figure, "<= 0.02")


def _store(root: str) -> Store:
    from quantbench.core.machine import Machine
    from quantbench.results.store import Run, Store

    machine = Machine(cpu="Example CPU", cpus=2, memory_bytes=2**33, isa="avx2", system="Linux x86_64")
    return Store(root, Run(machine=machine, versions={}, command="harness", commit="", profile="default", engine="inline"))


def _record(number: int, samples: tuple[Sample, ...], outputs: tuple[Output, ...]) -> Record:
    """A measured scenario in which every metric has a value."""
    from quantbench.core.record import Record, Status
    from quantbench.core.scenario import Scenario, Variant
    from quantbench.metrics import all_columns

    made: dict[str, Any] = {"float": 0.5 + number / 1e3, "int": 10**9 + number, "string": f"text {number}", "bool": True}
    scenario = Scenario(model="canary", variant=Variant(method="gguf", precision="q4_k_m"), prompts=f"set{number}")
    return Record(
        scenario=scenario,
        scenario_key=f"{number:064x}",
        status=Status.OK,
        values={column.name: made[column.kind] for column in all_columns()},
        facts={"kernel": "ggml-cpu", "threads": "2", "context": "512", "device": "cpu", "anchor": "gguf/f16"},
        samples=samples,
        outputs=outputs,
    )


def _samples(count: int) -> tuple[Sample, ...]:
    from quantbench.core.record import Sample

    return tuple(Sample("gap", index // 310, index % 310, 1e-3 + index % 997 * 1e-6) for index in range(count))


def _outputs() -> tuple[Output, ...]:
    from quantbench.core.record import Output

    tokens = tuple(range(32))
    return tuple(
        Output(
            index=index, prompt="a prompt " * 20, prompt_tokens=tokens, reference_tokens=tokens, variant_tokens=tokens,
            reference_text="an answer " * 20, variant_text="an answer " * 20, exact_match=True, first_divergence=None,
            token_match=1.0, chrf=100.0, scored_tokens=128, kld=tuple(index / 1e3 for index in range(128)), kld_mean=0.06,
            top1_agreement=0.95, nll_mean=2.0,
        )
        for index in range(10)
    )  # fmt: skip


def _told(script: str, *arguments: str) -> dict[str, Any]:
    """What a fresh process that runs ``script`` prints as JSON."""
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
