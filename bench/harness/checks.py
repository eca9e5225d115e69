"""The checks by name; here those of collection, start-up, job overhead and the main job."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median

import alarms
import as_llama
import busy
import clusters
import decoding
import dummies
import fidelity
import fleet
import jobs
import own_model
import picking
import planned
import scale
import soak
import verified
import waiting
from ratios import Result, seconds_in_turn, time_ratio

import results

PAIRS = 5
SCENARIOS = 10_000
PROMPT_FILES = 1250
LEAST_ROWS = 24


def collection() -> Iterator[Result]:
    """Collecting a 10,000-scenario matrix against as many bare parametrized items; both two tests a scenario."""
    with tempfile.TemporaryDirectory() as name:
        ours, bare = Path(name, "ours"), Path(name, "bare")
        for folder in (ours, bare):
            folder.mkdir()
        prompts = []
        for index in range(PROMPT_FILES):
            path = ours / f"set{index}.txt"
            path.write_text("one prompt\n")
            prompts.append(str(path))
        (ours / "matrix.toml").write_text(
            f'prompts = {prompts!r}\ncontrol = true\n[methods]\ntorch = ["fp32", "fp16", "bf16"]\n'
            'bitsandbytes = ["int8", "nf4", "nf4-dq", "fp4"]\n'
        )
        (ours / "test_ours.py").write_text("from quantbench.suite.test_latency import test_decode\n")
        (bare / "test_bare.py").write_text(
            "import pytest\n"
            f"@pytest.mark.parametrize('case', [f'canary/variant-{{i % 8}}/set{{i // 8}}' for i in range({SCENARIOS})])\n"
            "def test_decode(case, benchmark): pass\n"
        )
        command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
        with_plugin = [*command, "--quantbench-matrix=matrix.toml"]
        times = seconds_in_turn(
            lambda: _quiet(with_plugin, ours), lambda: _quiet([*command, "-p", "no:quantbench"], bare), pairs=PAIRS
        )
        yield time_ratio("collect 10,000 scenarios", times, "<= 1.3")


def start_up() -> Iterator[Result]:
    """Bare pytest with the plugin and without."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
        times = seconds_in_turn(
            lambda: _quiet(command, folder), lambda: _quiet([*command, "-p", "no:quantbench"], folder), pairs=2 * PAIRS
        )
        ours, bare = median(times[0]), median(times[1])
        yield Result("plugin over bare pytest (difference in s)", f"{ours:.3f} s", f"{bare:.3f} s", ours - bare, "<= 0.15")


def job_overhead() -> Iterator[Result]:
    """Wall time of one variant through runner, engine, worker and store, less what was spent opening and measuring."""
    scenarios = jobs.short_jobs(("fp32", "bf16", "fp16"))
    overheads, walls = [], []
    with jobs.runner("process", scenarios) as runner:
        for scenario in scenarios:
            started = time.perf_counter()
            trace = jobs.measure(runner, scenario)
            walls.append(time.perf_counter() - started)
            overheads.append(walls[-1] - trace.measured_s)
    rest = slice(1, None)  # the first one also starts the fork server and makes the reference
    yield Result("job overhead per variant (in s)", f"{median(walls[rest]):.3f} s", "", median(overheads[rest]), "<= 0.5")


def default_matrix() -> Iterator[Result]:
    """The whole main job with an empty cache, in which everything is quantized, trained and probed, and once more with it."""
    with tempfile.TemporaryDirectory() as cache:
        for state, limit in (("empty", 720), ("warm", 240)):
            seconds, scenarios = _main_job(cache)
            name = f"default matrix, {state} cache (in s)"
            yield Result(name, f"{seconds:.0f} s", f"{scenarios} rows", seconds, f"<= {limit}")


def _main_job(cache: str) -> tuple[float, int]:
    """Seconds of ``pytest bench/`` and the rows that it stored; ends the harness when rows failed."""
    import pandas as pd

    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "pytest", "bench/", "-q", "-p", "no:cacheprovider", f"--quantbench-results={name}"]
        started = time.perf_counter()
        _quiet(command, Path(__file__).parents[2], QUANTBENCH_CACHE=cache)
        seconds = time.perf_counter() - started
        rows = pd.read_parquet(Path(name, "scenarios"))
    broken = rows[~rows["status"].isin(["ok", "skipped"])]
    if len(broken) or (rows["status"] == "ok").sum() < LEAST_ROWS:
        raise SystemExit(f"the main job is broken, its time says nothing: {broken['reason'].tolist()}")
    return seconds, len(rows)


ALL: dict[str, Callable[[], Iterable[Result]]] = {
    "start-up": start_up,
    "collection": collection,
    "job-overhead": job_overhead,
    "ray-overhead": clusters.ray_overhead,
    "torch-decode": fidelity.torch_decode,
    "decode-paths": decoding.decode_paths,
    "gguf-decode": fidelity.gguf_decode,
    "llama-bench": fidelity.llama_bench,
    "kld-scoring": fidelity.kld_scoring,
    "own-model": own_model.own_model,
    "dummy-weights": dummies.weights,
    "dummy-decode": dummies.decode,
    "plan": planned.plan_command,
    "planned-weights": planned.predicted_weights,
    "large-runs": results.large_runs,
    "many-files": results.many_files,
    "appending": results.appending,
    "default-matrix": default_matrix,
    "as-llama": as_llama.as_llama,
    "waiting-speeds": waiting.speeds,
    "beside-work": waiting.beside_work,
    "peak-memory": waiting.peak_memory,
    "busy-marks": busy.marks,
    "busy-picks": busy.picks,
    "pick": picking.pick,
    "run-effect": alarms.run_effect,
    "cache-verify": verified.cache_verify,
    "scale-plan": scale.planning,
    "scale-tables": scale.reading,
    "scale-fleet": fleet.scale_fleet,
    "soak": soak.soak,
}


def _quiet(command: list[str], folder: Path, **variables: str) -> None:
    environment = {**os.environ, "PYTEST_ADDOPTS": "", **variables}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # without its cache pytest rewrites every plugin module on every start
    subprocess.run(command, cwd=folder, env=environment, check=False, stdout=subprocess.DEVNULL)
