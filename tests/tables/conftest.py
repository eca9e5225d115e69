"""Stored rows without a model: Records written through the Store and loaded again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from quantbench.core.machine import Machine
from quantbench.core.record import Missing, Record, Status, Value
from quantbench.core.scenario import Conditions, Scenario, Variant
from quantbench.planning.prompts import parse
from quantbench.results.store import Run, Store, load

MACHINE = Machine(cpu="Example CPU", cpus=2, memory_bytes=8 * 2**30, isa="avx2", system="Linux x86_64")
FP32_BYTES = 4_000_000
KLD = {
    "torch/fp32": 0.0, "torch/fp16": 4e-6, "torch/bf16": 2.6e-4, "bitsandbytes/int8": 1.9e-3, "bitsandbytes/nf4-dq": 0.059,
    "gguf/f16": 7e-7, "gguf/q8_0": 7.6e-4, "gguf/q6_k": 4.5e-3, "gguf/q5_k_m": 0.0125, "gguf/q4_k_m": 0.042,
    "gguf/q3_k_m": 0.139, "gguf/q2_k": 0.53,
}  # fmt: skip
BITS = {
    "fp32": 32, "fp16": 16, "bf16": 16, "int8": 9.5, "nf4-dq": 6.4,
    "f16": 16, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9, "q3_k_m": 4.1, "q2_k": 3.3,
}  # fmt: skip


def measured(name: str = "gguf/q4_k_m", **changes: Any) -> Record:
    """A record of variant ``name``.

    Keywords replace metrics, or control, status, reason, model, prompts, repeat, anchor; ``facts`` are added.
    """
    method, _, precision = name.partition("/")
    known = {key: changes.pop(key) for key in ("reason", "repeat") if key in changes}
    facts: dict[str, str] = changes.pop("facts", {})
    status = Status(changes.pop("status", "ok"))
    prompts, batch = parse(changes.pop("prompts", "ten"))
    scenario = Scenario(
        model=changes.pop("model", "canary"),
        prompts=prompts,
        batch=batch,
        variant=Variant(method=method, precision=precision, control=changes.pop("control", False)),
        conditions=Conditions(reference=changes.pop("reference", "torch/fp32")),
    )
    anchor = changes.pop("anchor", "gguf/f16" if method == "gguf" else "torch/fp32")
    bits = BITS.get(precision, 8)
    values: dict[str, Value] = {
        "weight_bytes": round(FP32_BYTES * bits / 32), "weight_bytes_running": round(FP32_BYTES * bits / 32),
        "bits_per_weight": float(bits), "decode_tps": 3200.0 / bits,
        "decode_tps_low": 3150.0 / bits, "decode_tps_high": 3250.0 / bits, "decode_ratio": 32.0 / bits,
        "ttft_s": 0.004, "kld_mean": KLD.get(name, 0.01), "kld_mean_se": KLD.get(name, 0.01) / 50,
        "kld_mean_low": KLD.get(name, 0.01) * 0.96, "kld_mean_high": KLD.get(name, 0.01) * 1.04, "top1_agreement": 0.95,
        "load_s": 0.31, "quantize_s": 5.3 if method == "gguf" else Missing("quantized while loading"),
        "conversion": "pre-quantized" if method == "gguf" else "on load",
        "runs_on_cpu": True, "runs_on_cuda": Missing("no CUDA device here"), "saves_and_reloads": True,
        "finetunes": method != "gguf", "finetune_loss_first": 4.206, "finetune_loss_last": 3.9,
        "capability_notes": '{"finetune": "no torch module"}' if method == "gguf" else "{}",
    }  # fmt: skip
    return Record(
        scenario=scenario,
        scenario_key="0" * 64,
        status=status,
        values={**values, **changes} if status == "ok" else {},
        facts={"anchor": anchor, "threads": "2", "context": "512", **facts},
        **known,
    )


Write = Callable[..., pd.DataFrame]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Store records as one run, and load everything stored so far."""

    def write_records(
        records: Sequence[Record], *, run_id: str = "run-1", day: int = 1, instrument_check: bool = True
    ) -> pd.DataFrame:
        run = Run(
            machine=MACHINE, versions={"llama-cpp-python": "0.3.36"}, command="pytest", commit="", profile="quick",
            engine="inline", run_id=run_id, started_at=datetime(2026, 1, day, tzinfo=UTC),
        )  # fmt: skip
        store = Store(str(tmp_path / "results"), run)
        for record in records:
            store.append(record, instrument_check=instrument_check)
        return load(str(tmp_path / "results"))

    return write_records


@pytest.fixture
def record() -> Callable[..., Record]:
    """Make one record; see ``measured``."""
    return measured


@pytest.fixture
def full() -> list[Record]:
    """All rows of both claimed tables, the gguf reference file and a control."""
    return [*(measured(name) for name in KLD), measured("torch/fp32", control=True)]


@pytest.fixture
def missing() -> Callable[[str], Missing]:
    """A value that was not measured."""
    return Missing
