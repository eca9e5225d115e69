"""Stored runs without a model, some of what they hold hostile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from quantbench.core.machine import Machine
from quantbench.core.record import Missing, Output, Record, Sample, Status, Value
from quantbench.core.scenario import Conditions, Scenario, Variant
from quantbench.report import Results, select
from quantbench.results.store import Run, Store, load

HOSTILE = (
    '<script>window.pwned=1</script>"><img src=x onerror="window.pwned=1"></script></style><!--{{7*7}}'
    "\u2028\u202e\x00\x1b[31m"
)
"""What a model may say: markup, ends of elements, a line separator, a direction override, NUL and a terminal escape."""

MACHINE = Machine(cpu="Example CPU", cpus=2, memory_bytes=8 * 2**30, isa="avx2", system="Linux x86_64")
VARIANTS = {
    "torch/fp32": (32.0, 100.0, 0.0), "torch/fp16": (16.0, 110.0, 4e-6), "bitsandbytes/int8": (9.5, 60.0, 1.9e-3),
    "bitsandbytes/nf4": (6.6, 80.0, 0.049), "gptq/int4-g128": (6.4, 90.0, 0.051), "gguf/f16": (16.0, 200.0, 7e-7),
    "gguf/q8_0": (8.5, 300.0, 7.6e-4), "gguf/q6_k": (6.6, 320.0, 4.5e-3), "gguf/q5_k_m": (5.7, 340.0, 0.0125),
    "gguf/q4_k_m": (4.9, 400.0, 0.042), "gguf/q3_k_m": (4.1, 390.0, 0.139), "gguf/q2_k": (3.3, 420.0, 0.53),
}  # fmt: skip
"""Bits a weight, tokens/s and KLD."""

PARAMETERS = 1_000_000
PROMPTS = ("Say it", HOSTILE)


def measured(name: str, *, control: bool = False, repeat: int = 0, model: str = "canary", **changes: Any) -> Record:
    """A record of variant ``name`` with two prompts, and twelve samples of prefill and gaps; keywords replace metrics."""
    method, _, precision = name.partition("/")
    bits, tps, kld = VARIANTS.get(name, (8.0, 50.0, 0.01))
    size = round(PARAMETERS * bits / 8)
    values: dict[str, Value] = {
        "weight_bytes": size, "weight_bytes_running": size, "bits_per_weight": bits, "ttft_s": 1 / tps,
        "decode_tps": tps, "decode_tps_low": tps * 0.98, "decode_tps_high": tps * 1.02, "decode_ratio": tps / 100,
        "itl_s": 1 / tps, "itl_ratio": tps / 100,
        "kld_mean": kld, "kld_mean_se": kld / 50, "kld_mean_low": kld * 0.9, "kld_mean_high": kld * 1.1,
        "top1_agreement": 1 - kld / 2, "chrf": 80.0, "energy_per_token_j": Missing("no counter here"),
    }  # fmt: skip
    samples = [
        Sample(phase, index, 0, (index + 1) / tps / factor)
        for phase, factor in (("prefill", 1), ("gap", 10))
        for index in range(12)
    ]
    variant = Variant(method=method, precision=precision, control=control)
    return Record(
        scenario=Scenario(model=model, prompts="ten", variant=variant, conditions=Conditions()),
        scenario_key=f"{name}{control}".ljust(64, "0"),
        status=Status.OK,
        repeat=repeat,
        values={**values, **changes},
        facts={"anchor": "torch/fp32", "threads": "2", "context": "512", "kernel": f"{method}-kernel"},
        samples=tuple(samples),
        outputs=tuple(said(index, "the same words" if name == "gguf/q8_0" else f"other words of {name}") for index in range(2)),
    )  # fmt: skip


def said(index: int, variant: str, reference: str = "the same words") -> Output:
    """Answers to one of PROMPTS; those to the second end in what is hostile."""
    tail = HOSTILE if index else ""
    return Output(
        index=index, prompt=PROMPTS[index], prompt_tokens=(1, 2), reference_tokens=(1, 2), variant_tokens=(1, 3),
        reference_text=reference + tail, variant_text=variant + tail, exact_match=reference == variant,
        first_divergence=None if reference == variant else 1, token_match=0.5, chrf=70.0,
    )  # fmt: skip


def failed(name: str, status: str, reason: str, traceback: str = "") -> Record:
    """A record of a variant that was not measured."""
    method, _, precision = name.partition("/")
    scenario = Scenario(
        model="canary", prompts="ten", variant=Variant(method=method, precision=precision), conditions=Conditions()
    )
    return Record(scenario=scenario, scenario_key="f" * 64, status=Status(status), reason=reason, traceback=traceback)


def module(name: str, call_s: float) -> Record:
    """A record of a module without tokens."""
    method, _, precision = name.partition("/")
    variant = Variant(method=method, precision=precision)
    return Record(
        scenario=Scenario(model="lstm", prompts="seeded", variant=variant, conditions=Conditions()),
        scenario_key=name.ljust(64, "1"),
        status=Status.OK,
        values={"weight_bytes": 24100, "bits_per_weight": 32.0, "call_s": call_s, "output_max_abs_error": 0.0},
        facts={"threads": "2"},
        samples=tuple(Sample("call", index, 0, call_s * (1 + index / 10)) for index in range(12)),
    )


def served() -> Record:
    """A record of a server that was asked for several answers at once, and does not say what its weights are."""
    by_level = '{"4": 410.0, "1": 120.0, "2": 230.5}'
    levels = {"concurrency": 4, "concurrent_tps": 410.0, "concurrent_ttft_s": 0.25, "concurrency_tps": by_level}
    unknown = dict.fromkeys(("weight_bytes", "weight_bytes_running", "bits_per_weight", "kld_mean"), Missing("a server's"))
    return replace(measured("server/as-served", model="some/served", **unknown, **levels), samples=(), outputs=())


def everything() -> list[Record]:
    """A run with every variant, a control, a module, a server, failures and skips."""
    return [
        *(measured(name) for name in VARIANTS),
        measured("torch/fp32", control=True),
        module("torch/fp32", 4e-4),
        module("torch-dynamic/int8", 2e-4),
        served(),
        failed("gguf/q4_0", "error", HOSTILE, f"Traceback\n{HOSTILE}"),
        failed("torchao/int4-wo", "skipped", "it needs a CUDA device"),
    ]


Write = Callable[..., Results]


def write_run(
    folder: Path, records: Sequence[Record], *, run_id: str = "run-1", day: int = 1, check: bool = True, torch: str = "2.13.0"
) -> None:
    """Store records as one run that ended."""
    run = Run(
        machine=MACHINE, versions={"torch": torch, "quantbench": "0.1.0"}, command=f"pytest {HOSTILE}", commit="abc",
        profile="quick", engine="inline", run_id=run_id, started_at=datetime(2026, 1, day, tzinfo=UTC),
    )  # fmt: skip
    store = Store(str(folder), run)
    for record in records:
        store.append(record, instrument_check=check)
    ok = sum(record.status == Status.OK for record in records)
    store.finish(planned=len(records), finished=len(records), ok=ok, interrupted=False)


def read_back(folder: Path, **chosen: str) -> Results:
    """What a report shows of a folder."""
    tables = {name: load(str(folder), name) for name in ("samples", "outputs", "runs") if (folder / name).exists()}
    return select(load(str(folder)), **tables, **chosen)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Store records as one run more, and read the latest."""

    def write_and_read(records: Sequence[Record], **options: Any) -> Results:
        write_run(tmp_path / "results", records, **options)
        return read_back(tmp_path / "results")

    return write_and_read


@pytest.fixture
def record() -> Callable[..., Record]:
    """Make one measured record."""
    return measured


@pytest.fixture(scope="session")
def everything_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: of a few variants, the same on the day after with other figures, and one of everything by another torch."""
    folder = tmp_path_factory.mktemp("results")
    names = ("torch/fp32", "gguf/q8_0", "gguf/q4_k_m")
    for day in (1, 2):
        write_run(folder, [measured(name, kld_mean=0.001 * day * math.pi) for name in names], run_id=f"run-{day}", day=day)
    write_run(folder, everything(), run_id="run-3", day=3, torch="2.14.0")
    return folder


@pytest.fixture(scope="session")
def everything_results(everything_folder: Path) -> Results:
    """The last of them."""
    return read_back(everything_folder)


@pytest.fixture(scope="session")
def everything_page(everything_results: Results, users_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its page. The libraries' own number formats are read once a machine."""
    from quantbench.report import page

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(users_cache))
        path = tmp_path_factory.mktemp("page") / "report.html"
        path.write_text(page(everything_results), encoding="utf-8")
    return path


@pytest.fixture
def hostile() -> str:
    """What the runs above hold where a model, an error or a command speaks."""
    return HOSTILE
