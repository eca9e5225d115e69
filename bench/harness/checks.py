"""The checks: collection, start-up, job overhead, and decode speed against the bare libraries."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

PAIRS = 5
SCENARIOS = 10_000
PROMPT_FILES = 1250
DECODE_TOKENS = 128
LEAST_ROWS = 24


@dataclass(frozen=True, slots=True)
class Result:
    """One figure with what it is compared with; ``limit`` such as ``<= 1.3`` is checked against ``figure``."""

    name: str
    ours: str
    bare: str
    figure: float
    limit: str

    @property
    def holds(self) -> bool:
        """Whether the figure keeps its limit."""
        sign, bound = self.limit.split()
        return self.figure <= float(bound) if sign == "<=" else self.figure >= float(bound)


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
        times = _alternate(
            lambda: _quiet(with_plugin, ours), lambda: _quiet([*command, "-p", "no:quantbench"], bare), pairs=PAIRS
        )
        yield _ratio("collect 10,000 scenarios", times, "<= 1.3", "s")


def start_up() -> Iterator[Result]:
    """Bare pytest with the plugin and without."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
        times = _alternate(
            lambda: _quiet(command, folder), lambda: _quiet([*command, "-p", "no:quantbench"], folder), pairs=2 * PAIRS
        )
        ours, bare = median(times[0]), median(times[1])
        yield Result("plugin over bare pytest (difference in s)", f"{ours:.3f} s", f"{bare:.3f} s", ours - bare, "<= 0.15")


def job_overhead() -> Iterator[Result]:
    """Wall time of one variant through runner, engine, worker and store, less what was spent opening and measuring."""
    from quantbench.machine import describe
    from quantbench.plan import Plan
    from quantbench.runner import Runner
    from quantbench.scenario import PROFILES, Conditions, Scenario, Variant
    from quantbench.store import Run, Store

    variants = [Variant(method="torch", precision=name) for name in ("fp32", "bf16", "fp16")]
    conditions = Conditions(output_tokens=8, answer_tokens=8, continuation_tokens=8)
    scenarios = tuple(Scenario(model="canary", variant=each, prompts="two", conditions=conditions) for each in variants)
    run = Run(machine=describe(), versions={}, command="harness", commit="", profile="quick", engine="process")
    overheads, walls = [], []
    with tempfile.TemporaryDirectory() as name:
        store = Store(name, run)
        with Runner(Plan(scenarios=scenarios, effort=PROFILES["quick"], engine="process"), store) as runner:
            for scenario in scenarios:
                started = time.perf_counter()
                record = runner.measure(scenario)
                wall = time.perf_counter() - started
                trace = runner.trace(scenario)
                if trace is None:
                    raise SystemExit(f"{scenario.id}: {record.status}: {record.reason}")
                walls.append(wall)
                overheads.append(wall - trace.measured_s)
    rest = slice(1, None)  # the first one also starts the fork server and makes the reference
    yield Result("job overhead per variant (in s)", f"{median(walls[rest]):.3f} s", "", median(overheads[rest]), "<= 0.5")


def torch_decode() -> Iterator[Result]:
    """Decoding the same tokens with plain ``model.generate``."""
    import torch

    from quantbench.methods import METHODS

    prompt = [1, 350, 300, 400, 500]
    with METHODS["torch"].open(*_canary("torch", "fp32")) as loaded:
        model = loaded.model  # type: ignore[attr-defined]
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": DECODE_TOKENS, "min_new_tokens": DECODE_TOKENS, "do_sample": False}

        def bare() -> None:
            model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)

        yield _speed("torch decode over model.generate", lambda: _drain(loaded.generate(prompt, DECODE_TOKENS)), bare)


def gguf_decode() -> Iterator[Result]:
    """Decoding the same tokens with llama.cpp's calls and nothing around them."""
    from quantbench.methods import METHODS

    prompt = [1, 350, 300, 400, 500]
    with METHODS["gguf"].open(*_canary("gguf", "q4_k_m")) as loaded:
        lib, context = loaded._lib, loaded._context  # type: ignore[attr-defined]  # noqa: SLF001 - the same context, bare

        def bare() -> None:
            sampler = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
            lib.llama_sampler_chain_add(sampler, lib.llama_sampler_init_greedy())
            lib.llama_memory_clear(lib.llama_get_memory(context), True)
            cells = (lib.llama_token * len(prompt))(*prompt)
            lib.llama_decode(context, lib.llama_batch_get_one(cells, len(prompt)))
            cell = (lib.llama_token * 1)(lib.llama_sampler_sample(sampler, context, -1))
            batch = lib.llama_batch_get_one(cell, 1)
            for _ in range(DECODE_TOKENS - 1):
                lib.llama_decode(context, batch)
                cell[0] = lib.llama_sampler_sample(sampler, context, -1)
            lib.llama_sampler_free(sampler)

        yield _speed("gguf decode over the bare loop", lambda: _drain(loaded.generate(prompt, DECODE_TOKENS)), bare)


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
    "torch-decode": torch_decode,
    "gguf-decode": gguf_decode,
    "default-matrix": default_matrix,
}


def _canary(method: str, precision: str) -> tuple[object, object]:
    from quantbench.machine import available_cpus
    from quantbench.methods import Settings
    from quantbench.models._checkpoint import resolve
    from quantbench.scenario import Scenario, Variant

    scenario = Scenario(model="canary", variant=Variant(method=method, precision=precision), prompts="two")
    return scenario, Settings(checkpoint=resolve("canary"), threads=available_cpus(), context=256)


def _drain(tokens: Iterable[int]) -> None:
    for _ in tokens:
        pass


def _quiet(command: list[str], folder: Path, **variables: str) -> None:
    environment = {**os.environ, "PYTEST_ADDOPTS": "", **variables}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # without its cache pytest rewrites every plugin module on every start
    subprocess.run(command, cwd=folder, env=environment, check=False, stdout=subprocess.DEVNULL)


def _alternate(ours: Callable[[], None], bare: Callable[[], None], *, pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of both, in turn, after one untimed call of each."""
    ours()
    bare()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        for index, work in enumerate((ours, bare)):
            started = time.perf_counter()
            work()
            times[index].append(time.perf_counter() - started)
    return times


def _ratio(name: str, times: tuple[list[float], list[float]], limit: str, unit: str) -> Result:
    ratio = median(a / b for a, b in zip(*times, strict=True))
    return Result(name, f"{median(times[0]):.3f} {unit}", f"{median(times[1]):.3f} {unit}", ratio, limit)


def _speed(name: str, ours: Callable[[], None], bare: Callable[[], None]) -> Result:
    times = _alternate(ours, bare, pairs=4 * PAIRS)
    ratio = median(b / a for a, b in zip(*times, strict=True))
    rates = [f"{DECODE_TOKENS / median(each):.0f} tok/s" for each in times]
    return Result(name, rates[0], rates[1], ratio, ">= 0.97")
