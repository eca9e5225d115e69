"""Threads that wait, and memory as an outside witness sees it.

    python bench/harness/run.py waiting-speeds beside-work peak-memory

``waiting.py answer|plain-answer VARIANT`` and ``waiting.py llama|torch JSON`` are the processes that these start.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, Any

from ratios import CannotRunError, Result, in_turn, speed_ratio

from quantbench.core.machine import available_cpus
from quantbench.core.waiting import COUNT, POLICY, Rest, bounded

VARIANTS = ("torch/fp32", "torch/bf16", "bitsandbytes/nf4", "gguf/q8_0", "gguf/q4_k_m")
PROCESSES, PAIRS = 6, 9
"""Processes of either kind that take turns, and how often: speeds of two processes of one kind differ by up to a quarter.

Which of a pair is opened first decides too (fp32 lost 5 to 10 %), so it changes from pair to pair, and their number is even.
"""
SLICE_S = 0.25
LIBGOMP_SPINS = "300000"
"""What libgomp does when nobody tells it: for figures of before."""

MODEL, CONTEXT, LENGTH = "canary", 128, 32
PROMPT = [1, *range(3, 27)]


def speeds() -> Iterator[Result]:
    """Decoding as in a worker, whose threads rested before, beside libgomp's own spin: pairs of processes that take turns.

    A pair's rates are the medians of its two processes; QUANTBENCH_HARNESS_SELECT is part of a variant's name.
    """
    clean = {name: value for name, value in os.environ.items() if name not in (COUNT, POLICY)}
    for variant in (each for each in VARIANTS if os.environ.get("QUANTBENCH_HARNESS_SELECT", "") in each):
        rates: tuple[list[float], list[float]] = ([], [])
        for number in range(PROCESSES):
            environments = {"answer": {**clean, **bounded(clean)}, "plain-answer": clean}
            with contextlib.ExitStack() as stack:
                opened = {
                    what: stack.enter_context(_asked(what, variant, environments[what]))
                    for what in sorted(environments, reverse=number % 2 == 1)
                }
                ours, bare = (partial(_say, opened[what]) for what in environments)
                pair = in_turn(ours, bare, pairs=PAIRS)
            for side, found in zip(rates, pair, strict=True):
                side.append(median(map(float, found)))
        print(f"  {variant}: {', '.join(f'{ours / bare:.3f}' for ours, bare in zip(*rates, strict=True))}", file=sys.stderr)
        yield speed_ratio(f"decode with a bounded spin, {variant}", rates, ">= 0.98")


def beside_work(select: str = os.environ.get("QUANTBENCH_HARNESS_SELECT", "")) -> Iterator[Result]:
    """The warm main job beside one niced busy process, over its time alone; QUANTBENCH_HARNESS_SELECT is pytest's -k."""
    main_job(select)
    alone = main_job(select)
    busy = subprocess.Popen(
        ["nice", "-n", "19", sys.executable, "-c", "while True: pass"],
        start_new_session=True,  # another session: its niceness counts there only, and it gets a fair share of a core
    )
    try:
        beside = main_job(select)
    finally:
        busy.kill()
        busy.wait()
    yield Result("warm main job beside a busy process", f"{beside:.0f} s", f"{alone:.0f} s", beside / alone, "<= 2.5")


def peak_memory() -> Iterator[Result]:
    """Peak memory of a row beside the kernel's mark of a plain process that loads and answers the same, read from outside.

    The plain process has imported what a worker imports too. Of torch the anonymous part: a forked worker maps only those pages
    of torch's own files that it touches, and a process of its own keeps 80 MB more of them from when it imported torch.
    """
    from quantbench.core.machine import describe
    from quantbench.core.scenario import PROFILES, Conditions, Scenario, Variant
    from quantbench.models.checkpoint import resolve
    from quantbench.planning.options import Plan
    from quantbench.results.store import Run, Store
    from quantbench.running.runner import Runner

    pairs = (Variant(method="gguf", precision="q4_k_m"), Variant(method="torch", precision="fp32"))
    conditions = Conditions(output_tokens=LENGTH, answer_tokens=8, continuation_tokens=8)
    scenarios = tuple(Scenario(model=MODEL, variant=each, prompts="two", conditions=conditions) for each in pairs)
    run = Run(machine=describe(), versions={}, command="harness", commit="", profile="quick", engine="process")
    with tempfile.TemporaryDirectory() as results:
        plan = Plan(scenarios=scenarios, effort=PROFILES["quick"], engine="process", probes=False)
        with Runner(plan, Store(results, run)) as runner:
            for scenario in scenarios:
                record, trace = runner.measure(scenario), runner.trace(scenario)
                if trace is None:
                    raise CannotRunError(f"{scenario.id}: {record.reason}")
                prompt = max((answer.prompt_tokens for answer in trace.answers), key=len)
                asked = {"prompt": list(prompt), "context": int(trace.facts["context"]), "path": str(resolve(MODEL).path)}
                kind = "torch"
                if scenario.variant.method == "gguf":
                    kind, asked["path"] = "llama", _gguf(scenario, resolve(MODEL))
                assert trace.peak
                seen = {"llama": ("VmHWM", trace.peak.peak_rss_bytes), "torch": ("RssAnon", trace.peak.rss_anon_bytes)}
                field, found = seen[kind]
                theirs = _witnessed(kind, asked)[field]
                for limit in ("<= 1.02", ">= 0.98"):
                    name = f"{field}, {scenario.variant.name}"
                    yield Result(name, f"{found / 1e6:.1f} MB", f"{theirs / 1e6:.1f} MB", found / theirs, limit)


def _gguf(scenario: Any, checkpoint: Any) -> str:
    from quantbench.methods import METHODS, Settings

    preparer = METHODS["gguf"].preparer
    assert preparer
    return str(preparer(scenario, Settings(checkpoint=checkpoint, threads=available_cpus(), context=CONTEXT)).path)


def _witnessed(kind: str, asked: Mapping[str, Any]) -> dict[str, int]:
    """VmHWM of a plain process from when it has loaded to when it has answered, and RssAnon then, as its parent reads them."""
    with _asked(kind, json.dumps(asked), {**os.environ, **bounded(os.environ)}) as child:
        folder = Path(f"/proc/{child.pid}")
        (folder / "clear_refs").write_text("5")
        _say(child)
        found = re.findall(r"(VmHWM|RssAnon):\s+(\d+) kB", (folder / "status").read_text())
        return {name: int(count) * 1024 for name, count in found}


def main_job(select: str, *options: str) -> float:
    """Seconds of ``pytest bench/`` with these options besides."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "pytest", "bench/", "-q", "-p", "no:cacheprovider", f"--quantbench-results={name}"]
        environment = {key: value for key, value in os.environ.items() if key not in (COUNT, POLICY)}
        started = time.perf_counter()
        subprocess.run(
            [*command, *options, *(["-k", select] if select else [])], cwd=Path(__file__).parents[2],
            env={**environment, "PYTEST_ADDOPTS": ""}, check=False, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return time.perf_counter() - started


@contextlib.contextmanager
def _asked(what: str, argument: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process of this file that has loaded its model and waits for a line."""
    child = subprocess.Popen(
        [sys.executable, __file__, what, argument], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        if not _line(child.stdout):
            raise CannotRunError(f"{what} {argument} could not be opened")
        yield child
    finally:
        child.kill()
        child.communicate()


def _say(child: subprocess.Popen[str]) -> str:
    assert child.stdin
    child.stdin.write("\n")
    child.stdin.flush()
    return _line(child.stdout)


def _line(stream: IO[str] | None) -> str:
    assert stream
    return stream.readline().strip()


def answer(variant: str, *, rests: bool) -> None:
    """Open the variant; for each line of input say its decode tokens/s, the median of a quarter of a second."""
    from quantbench.core.scenario import Conditions, Scenario, Variant
    from quantbench.measuring.passes.latency import timed_answer
    from quantbench.methods import METHODS, Settings
    from quantbench.models.checkpoint import resolve

    method, _, precision = variant.partition("/")
    asked = Variant(method=method, precision=precision)
    scenario = Scenario(model=MODEL, variant=asked, prompts="two", conditions=Conditions())
    settings = Settings(checkpoint=resolve(MODEL), threads=available_cpus(), context=CONTEXT)
    with METHODS[method].open(scenario, settings) as model:
        with Rest(available_cpus()) as rest:
            if rests:
                rest.begin()
            timed_answer(model, 0, PROMPT, LENGTH)
        timed_answer(model, 0, PROMPT, LENGTH)
        print("loaded", flush=True)
        for _ in sys.stdin:
            ended, rates = time.perf_counter() + SLICE_S, []
            while not rates or time.perf_counter() < ended:
                gaps = timed_answer(model, 0, PROMPT, LENGTH)[0].gaps_s
                rates.append(len(gaps) / sum(gaps))
            print(median(rates), flush=True)


def plain_llama(asked: Mapping[str, Any]) -> None:
    """llama-cpp-python's calls and no code of ours: load the file, wait for a line, answer."""
    import gguf  # noqa: F401 - method gguf imports it too: a few MB, which are in each row as well
    import llama_cpp as lib

    import quantbench.runtimes.llama_cpp.files  # noqa: F401
    _import_worker()
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.load_mode, params.n_gpu_layers = lib.LLAMA_LOAD_MODE_NONE, 0
    model = lib.llama_model_load_from_file(asked["path"].encode(), params)
    options = lib.llama_context_default_params()
    options.n_ctx, options.n_seq_max, options.n_batch = asked["context"], 1, 512
    options.n_threads = options.n_threads_batch = available_cpus()
    options.op_offload = options.offload_kqv = False
    context = lib.llama_init_from_model(model, options)
    sampler = lib.llama_sampler_init_greedy()
    _loaded()
    tokens = asked["prompt"]
    for _ in range(LENGTH):
        cells = (lib.llama_token * len(tokens))(*tokens)
        lib.llama_decode(context, lib.llama_batch_get_one(cells, len(tokens)))
        tokens = [lib.llama_sampler_sample(sampler, context, -1)]
    _answered()


def plain_torch(asked: Mapping[str, Any]) -> None:
    """Torch's and transformers' calls and no code of ours: load the folder in float32, wait for a line, answer."""
    import torch
    from transformers import AutoModelForCausalLM

    _import_worker()
    torch.set_num_threads(available_cpus())
    model = AutoModelForCausalLM.from_pretrained(asked["path"], dtype="float32").eval()
    _loaded()
    with torch.inference_mode():
        ids = torch.tensor([asked["prompt"]])
        model.generate(ids, min_new_tokens=LENGTH, max_new_tokens=LENGTH, do_sample=False)
    _answered()


def _import_worker() -> None:
    """What any worker has imported of ours and for us: some 8 MB of Python, no part of a model's memory but in each row's."""
    import quantbench.measuring.worker  # noqa: F401
    from quantbench.core.machine import describe
    from quantbench.methods import METHODS

    list(METHODS)
    describe()


def _loaded() -> None:
    ctypes.CDLL(None).malloc_trim(0)
    print("loaded", flush=True)
    sys.stdin.readline()


def _answered() -> None:
    print("answered", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    what, argument = sys.argv[1:]
    match what:
        case "answer":
            answer(argument, rests=True)
        case "plain-answer":
            answer(argument, rests=False)
        case "llama":
            plain_llama(json.loads(argument))
        case "torch":
            plain_torch(json.loads(argument))
