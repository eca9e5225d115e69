"""Write a few rows of every table with the quantbench that is on the path, to keep them for later versions.

Those of version 1 were made by the last commit that had it::

    git worktree add OLD edf8501
    PYTHONPATH=OLD python tests/data/schema/write.py tests/data/schema/version-1

Those of version 2 by cf3471e in the same way.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from quantbench.machine import Machine
from quantbench.record import Missing, Output, Record, Sample, Status
from quantbench.scenario import Scenario, Variant
from quantbench.store import Run, Store

OK = Record(
    scenario=Scenario(model="canary", variant=Variant(method="gguf", precision="q4_k_m"), prompts="ten"),
    scenario_key="a" * 64,
    status=Status.OK,
    values={"weight_bytes": 2**53 + 1, "kld_mean": 0.25, "runs_on_cpu": True, "kld_p99": Missing("few positions")},
    facts={"kernel": "ggml-cpu", "threads": "2", "context": "512"},
    samples=(Sample("prefill", 0, 0, 0.5), Sample("gap", 0, 1, 0.25)),
    outputs=(
        Output(
            index=0, prompt="p", prompt_tokens=(1, 2), reference_tokens=(3, 4), variant_tokens=(3, 5), reference_text="a",
            variant_text="b", exact_match=False, first_divergence=1, token_match=0.5, chrf=50.0, scored_tokens=2,
            kld=(0.125, 0.375), kld_mean=0.25, top1_agreement=0.5, nll_mean=2.0,
        ),
    ),
)  # fmt: skip
SKIPPED = Record(
    scenario=Scenario(model="canary", variant=Variant(method="torch", precision="fp16"), prompts="ten"),
    scenario_key="b" * 64, status=Status.SKIPPED, reason="not here",
)  # fmt: skip


def main(root: str) -> None:
    """Two rows of scenarios, two of samples, one of outputs, one of runs."""
    machine = Machine(cpu="Example CPU", cpus=2, memory_bytes=2**33, isa="avx2", system="Linux x86_64")
    run = Run(
        machine=machine, versions={"torch": "2.13.0"}, command="pytest bench/", commit="", profile="quick", engine="inline",
        run_id="old-run", started_at=datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip
    store = Store(root, run)
    for record in (OK, SKIPPED):
        store.append(record, instrument_check=True)
    store.finish(planned=2, finished=2, ok=1, interrupted=False)


if __name__ == "__main__":
    main(sys.argv[1])
