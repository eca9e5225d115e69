"""One stored run without a model: repeats, failures, intervals, figures that are no numbers, and hostile texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from quantbench.core.machine import Machine
from quantbench.core.record import Missing, Output, Record, Sample, Status
from quantbench.core.scenario import Scenario, Variant
from quantbench.export import export
from quantbench.results.store import Run, Store, load

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

HOSTILE = (
    "=HYPERLINK(\"http://example.org\"&A1,\"it's\")", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", " =1", "\uff1d1", "'quoted",
    "two\r\nlines, \"and\" a comma", "\u2028 and \x85", "<script>", "\x1b[31mred", "NaN", "None", "plain",
)  # fmt: skip
RUN = Run(
    machine=Machine(cpu="Example CPU", cpus=2, memory_bytes=8 * 2**30, isa="avx2", system="Linux x86_64"),
    versions={"torch": "2.13.0", "quantbench": "0.1.0"}, command="pytest -k '=1'", commit="1234567", profile="quick",
    engine="inline", run_id="run-1", started_at=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
)  # fmt: skip


def record(name: str, *, model: str = "canary", status: str = "ok", reason: str = "", repeat: int = 0, **values: Any) -> Record:
    """A record of variant ``name`` with these metrics."""
    control = name.endswith("-control")
    method, _, precision = name.removesuffix("-control").partition("/")
    return Record(
        scenario=Scenario(model=model, prompts="ten", variant=Variant(method=method, precision=precision, control=control)),
        scenario_key="ab" * 32,
        status=Status(status),
        reason=reason,
        repeat=repeat,
        values=values,
        facts={"threads": "2", "context": "512", "device": "cpu", "kernel": "a-kernel"} if status == "ok" else {},
    )


def output(index: int, text: str) -> Output:
    """An answer of a variant."""
    return Output(
        index=index, prompt="Say it", prompt_tokens=(1, 2), reference_tokens=(3,), variant_tokens=(4, 5) if index else None,
        reference_text="it", variant_text=text, exact_match=False, first_divergence=0 if index else None,
        token_match=0.5, chrf=1 / 3, scored_tokens=2, kld=(0.1, float("inf")) if index else None,
    )  # fmt: skip


def records() -> list[Record]:
    """The rows of the run."""
    nf4 = record(
        "bitsandbytes/nf4", decode_tps=100.5, decode_tps_low=99.0, decode_tps_high=102.25, kld_mean=0.0625, kld_mean_low=0.05,
        ln_ppl_ratio=-0.001, ppl=float("nan"), e2e_s=float("inf"), weight_bytes=2**40 + 1, parameters=7, rounds=5,
        load_s=Missing("not measured"),
    )  # fmt: skip
    samples = tuple(Sample(phase="gap", round=1, index=index, value_s=index / 7) for index in range(3))
    full = Record(
        scenario=nf4.scenario, scenario_key=nf4.scenario_key, status=nf4.status, values=nf4.values, facts=nf4.facts,
        samples=samples, outputs=tuple(output(index, text) for index, text in enumerate(HOSTILE)),
    )  # fmt: skip
    repeats = [
        record(
            "gguf/q8_0", repeat=0, decode_tps=100.0, decode_tps_low=98.0, decode_tps_high=101.0, weight_bytes=10, ttft_s=0.5
        ),
        record("gguf/q8_0", repeat=1, decode_tps=300.0, decode_tps_low=290.0, decode_tps_high=301.0, weight_bytes=10),
        record(
            "gguf/q8_0", repeat=2, decode_tps=200.0, decode_tps_low=199.0, decode_tps_high=202.0, weight_bytes=10, ttft_s=0.4
        ),
    ]
    return [
        record("torch/fp32", decode_tps=50.0, kld_mean=0.0, weight_bytes=40),
        record("torch/fp32-control", decode_tps=51.0, kld_mean=0.0, weight_bytes=40),
        full,
        *repeats,
        record("gguf/q2_k", decode_tps=70.0),
        record("gguf/q2_k", repeat=1, status="crashed", reason="signal 11"),
        record("torch/fp16", status="oom", reason="=cmd|'/c calc'!A1"),
        record("torchao/int4-wo", status="skipped", reason="needs CUDA"),
    ]


def _stored(place: Path, rows: list[Record]) -> str:
    writer = Store(str(place), RUN)
    for row in rows:
        writer.append(row, instrument_check=True)
    writer.finish(planned=len(rows), finished=len(rows), ok=sum(row.status == Status.OK for row in rows), interrupted=False)
    return str(place)


@pytest.fixture
def store(tmp_path: Path) -> Callable[[list[Record]], str]:
    """Store records as one run; returns where."""
    return lambda rows: _stored(tmp_path / "results", rows)


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the run of ``records`` is stored."""
    return _stored(tmp_path_factory.mktemp("exported") / "results", records())


@pytest.fixture(scope="session")
def frame(results: str) -> pd.DataFrame:
    """Its rows of ``scenarios``."""
    return load(results)


@pytest.fixture
def make() -> Callable[..., Record]:
    """Make one record; see ``record``."""
    return record


@pytest.fixture
def hostile() -> tuple[str, ...]:
    """What the variant answered."""
    return HOSTILE


@pytest.fixture
def parsed() -> Callable[..., Any]:
    """Export, and parse the text as strict JSON."""

    def parse(name: str, frame: pd.DataFrame, **options: Any) -> Any:
        return json.loads("".join(export(name, frame, **options)), parse_constant=_refuse)

    return parse


def _refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")
