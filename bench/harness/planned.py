"""The plan beside what is measured: bytes of weights, and what the command itself costs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ratios import Result

if TYPE_CHECKING:
    import pandas as pd

BILLION = "dummy:tinyllama-1.1b"
LIMIT = "<= 0.01"
PLAN = ["plan", "llama-2-70b", "--fit", "24GiB"]


def plan_command() -> Iterator[Result]:
    """A 70B over every method: wall seconds and peak memory from start to finish, nothing cached and cached."""
    with tempfile.TemporaryDirectory() as cache:
        for state in ("first", "again"):
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            started = time.perf_counter()
            done = _quantbench(PLAN, cache)
            seconds = time.perf_counter() - started
            lines = [line for line in done.stdout.splitlines() if " GB " in line]
            rows = len({line.split()[0] for line in lines if "/" in line.split()[0]})
            yield Result(f"plan of a 70B, {state} (in s)", f"{seconds:.2f} s", f"{rows} rows", seconds, "<= 1.5")
            most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            if most > before:  # only a larger child shows
                yield Result(f"plan of a 70B, {state} (in MB)", f"{most / 1e3:.0f} MB", "", most / 1e3, "<= 150")


def predicted_weights() -> Iterator[Result]:
    """Predicted over measured weight bytes: every method on the canary, torch and gguf on a dummy of 1.1 B parameters."""
    yield from _compared("canary", [])
    yield from _compared(BILLION, ["--method", "torch,gguf", "--precision", "fp32,fp16,bf16,f16,q8_0,q4_k_m,q2_k"])


def _compared(model: str, options: list[str]) -> Iterator[Result]:
    """Every variant that was measured, and how far its prediction is off; one without a prediction misses the limit."""
    from pandas import notna

    with tempfile.TemporaryDirectory() as folder:
        rows = run_rows(model, ["--prompts", "two", "--profile", "quick", "--output-tokens", "2", *options], Path(folder))
    for _, row in rows[rows["weight_bytes"].notna()].iterrows():
        measured, planned = int(row["weight_bytes"]), row["predicted_weight_bytes"]
        off = abs(planned / measured - 1) if notna(planned) else float("inf")
        said = f"{int(planned):,}" if notna(planned) else "none"
        yield Result(f"{model} {row['method']}/{row['precision']} (off by)", said, f"{measured:,}", off, LIMIT)
    broken = rows[~rows["status"].isin(["ok", "skipped"])]
    if len(broken) or rows["weight_bytes"].isna().all():
        raise SystemExit(f"the run of {model} is broken: {broken['reason'].tolist()}")


def run_rows(model: str, options: list[str], folder: Path) -> pd.DataFrame:
    """The rows of scenarios of a run without probes."""
    import pandas as pd

    _quantbench(["run", "--model", model, "--no-probes", "--results", str(folder), *options])
    return pd.read_parquet(folder / "scenarios")


def _quantbench(arguments: list[str], cache: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTEST_ADDOPTS": "", **({"QUANTBENCH_CACHE": cache} if cache else {})}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", "from quantbench.cli import main; main()", *arguments]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
