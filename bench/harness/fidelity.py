"""Are our figures those of the bare libraries? Decoding beside ``generate``, everything of a GGUF beside llama.cpp's own tools.

llama.cpp's tools load a model afresh each time, and between fresh processes a figure moves more than within one; so beside them
our side is a fresh process too. Both read the same file into plain memory and run the same kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from own_model import build
from ratios import CannotRunError, in_turn, seconds_in_turn, speed_ratio

from quantbench.core.allocator import one_allocator
from quantbench.core.machine import available_cpus
from quantbench.core.scenario import Scenario, Variant
from quantbench.core.waiting import bounded
from quantbench.methods import METHODS, Settings
from quantbench.models.checkpoint import resolve
from quantbench.runtimes.llama_cpp.probe import extra_buffers_work

if TYPE_CHECKING:
    from ratios import Pairs, Result

HERE = Path(__file__).parent
BIN_VARIABLE = "QUANTBENCH_LLAMA_CPP_BIN"
LEVEL = "gguf/q4_k_m"
REFERENCE = "gguf/f16"
PROMPT = [1, 350, 300, 400, 500]
PROCESSES = 9
"""Fresh processes of each side."""

TEXT = HERE.parents[1] / "tests" / "data" / "llama_cpp" / "text.txt"
TEXT_COPIES = 2
CONTEXT = 512
CHUNKS, FEW_CHUNKS = (4, 64), (2, 10)
"""llama-perplexity's speed is taken from the difference of two runs of so many, so that loading cancels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model with the lengths in tokens and the counts that suit its size."""

    model: str
    name: str
    decode: int
    pairs: int
    prompt: int
    length: int
    repetitions: int
    bench_limit: str


CANARY = Subject(
    model="canary", name="canary", decode=128, pairs=20, prompt=512, length=128, repetitions=10, bench_limit=">= 0.85"
)
DUMMY = Subject(
    model=f"dummy:{HERE / 'half-billion.json'}", name="0.55 B dummy", decode=8, pairs=8, prompt=128, length=24, repetitions=6,
    bench_limit=">= 0.98",
)  # fmt: skip
"""Large enough that a step takes tens of milliseconds, as that of a real model."""

BILLION = Subject(
    model="dummy:tinyllama-1.1b", name="1.1 B dummy", decode=16, pairs=5, prompt=128, length=24, repetitions=6,
    bench_limit=">= 0.98",
)  # fmt: skip
SUBJECTS = (CANARY, DUMMY)


def torch_decode() -> Iterator[Result]:
    """Decoding the same tokens with plain ``model.generate``."""
    import torch

    for subject in SUBJECTS:
        length = subject.decode
        with METHODS["torch"].open(*opened(subject, "torch/fp32")) as loaded:
            model = loaded.model  # type: ignore[attr-defined]
            ids = torch.tensor([PROMPT])
            options = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "pad_token_id": 0}

            def ours(loaded: Any = loaded, length: int = length) -> None:
                drain(loaded.generate(PROMPT, length))

            def bare(model: Any = model, ids: Any = ids, options: dict[str, Any] = options) -> None:
                model.generate(ids, attention_mask=torch.ones_like(ids), **options)

            seconds = seconds_in_turn(ours, bare, pairs=subject.pairs)
        yield speed_ratio(f"{subject.name} torch decode over model.generate", rates_of(seconds, length), ">= 0.98")


def gguf_decode() -> Iterator[Result]:
    """Decoding the same tokens with llama.cpp's calls and nothing around them."""
    length = CANARY.decode
    with METHODS["gguf"].open(*opened(CANARY, LEVEL)) as loaded:
        lib, context = loaded._lib, loaded._context  # type: ignore[attr-defined]  # noqa: SLF001 - the same context, bare

        def bare() -> None:
            sampler = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
            lib.llama_sampler_chain_add(sampler, lib.llama_sampler_init_greedy())
            lib.llama_memory_clear(lib.llama_get_memory(context), False)
            cells = (lib.llama_token * len(PROMPT))(*PROMPT)
            lib.llama_decode(context, lib.llama_batch_get_one(cells, len(PROMPT)))
            cell = (lib.llama_token * 1)(lib.llama_sampler_sample(sampler, context, -1))
            batch = lib.llama_batch_get_one(cell, 1)
            for _ in range(length - 1):
                lib.llama_decode(context, batch)
                cell[0] = lib.llama_sampler_sample(sampler, context, -1)
            lib.llama_sampler_free(sampler)

        seconds = seconds_in_turn(lambda: drain(loaded.generate(PROMPT, length)), bare, pairs=CANARY.pairs)
    yield speed_ratio("gguf decode over the bare loop", rates_of(seconds, length), ">= 0.97")


def llama_bench() -> Iterator[Result]:
    """Prefill and decode of a GGUF file beside ``llama-bench -p N -n N``, which does not sample."""
    for subject in SUBJECTS:
        yield from gguf_bench(subject, LEVEL, processes=PROCESSES)


def gguf_bench(subject: Subject, variant: str, *, processes: int) -> Iterator[Result]:
    """One file beside llama-bench, with so many fresh processes of each side."""
    tool = tool_path("llama-bench")
    path = gguf_file(subject, variant)
    command = [
        str(tool), "-m", str(path), "-p", str(subject.prompt), "-n", str(subject.length), "-r", str(subject.repetitions),
        "-t", str(available_cpus()), "-b", "512", "-ub", "512", "-lm", "none", "--repack", str(int(extra_buffers_work())),
        "-o", "json",
    ]  # fmt: skip
    asked = {"prompt": subject.prompt, "length": subject.length, "repetitions": subject.repetitions}
    context = max(subject.prompt, subject.length + 2)
    found = in_turn(
        lambda: our_rates("answers", path, variant, context=context, **asked),
        lambda: their_rates(command),
        pairs=processes,
    )
    for phase, tokens in (("prefill", subject.prompt), ("decode", subject.length)):
        rates: Pairs = ([each[phase] for each in found[0]], [each[phase] for each in found[1]])
        what = f"{subject.name} {variant} {phase} of {tokens} over llama-bench"
        yield speed_ratio(what, rates, subject.bench_limit)


def kld_scoring() -> Iterator[Result]:
    """Scoring a text by a GGUF file against another beside ``llama-perplexity --kl-divergence``."""
    yield from _kld_scoring(CANARY, CHUNKS, ">= 0.9")
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        subject = replace(DUMMY, model=folder, name="135 M of random weights", pairs=5)
        yield from _kld_scoring(subject, FEW_CHUNKS, ">= 0.98")


def _kld_scoring(subject: Subject, counts: tuple[int, int], limit: str) -> Iterator[Result]:
    tool = tool_path("llama-perplexity")
    files = {variant: gguf_file(subject, variant) for variant in (LEVEL, REFERENCE)}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        text = scratch / "text.txt"
        text.write_text(TEXT.read_text(encoding="utf-8") * TEXT_COPIES, encoding="utf-8")
        plain = [] if extra_buffers_work() else ["--no-repack"]
        common = [str(tool), "-c", str(CONTEXT), "-t", str(available_cpus()), "--load-mode", "none", *plain]
        for chunks in counts:
            made = ["-m", str(files[REFERENCE]), "-f", str(text), "--chunks", str(chunks)]
            _run([*common, *made, "--kl-divergence-base", str(scratch / f"{chunks}.dat")])
        our_rates("reference", files[REFERENCE], REFERENCE, context=CONTEXT, chunks=counts[-1], text=str(text), folder=name)

        def ours() -> float:
            return our_rates("score", files[LEVEL], LEVEL, context=CONTEXT, folder=name)["score"]

        def bare() -> float:
            seconds = []
            for chunks in counts:
                base = ["--kl-divergence-base", str(scratch / f"{chunks}.dat")]
                started = time.perf_counter()
                _run([*common, "-m", str(files[LEVEL]), *base, "--kl-divergence"])
                seconds.append(time.perf_counter() - started)
            return (counts[-1] - counts[0]) * CONTEXT / (seconds[-1] - seconds[0])

        rates = in_turn(ours, bare, pairs=min(PROCESSES, subject.pairs))
    yield speed_ratio(f"{subject.name}, KLD scoring over llama-perplexity", rates, limit)


def opened(subject: Subject, variant: str) -> tuple[Scenario, Settings]:
    method, _, precision = variant.partition("/")
    scenario = Scenario(model=subject.model, variant=Variant(method=method, precision=precision), prompts="two")
    return scenario, Settings(checkpoint=resolve(subject.model), threads=available_cpus(), context=256)


@cache
def gguf_file(subject: Subject, variant: str) -> Path:
    """The model's file, made on first use."""
    preparer = METHODS["gguf"].preparer
    assert preparer is not None
    return preparer(*opened(subject, variant)).path


def tool_path(name: str) -> Path:
    """One of llama.cpp's tools; CannotRunError where nobody says where it is."""
    folder = os.environ.get(BIN_VARIABLE)
    path = Path(folder or ".", name)
    if not folder or not path.is_file():
        raise CannotRunError(
            f"{name} is not in {BIN_VARIABLE}={folder or ''}; build it from the source of the installed llama-cpp-python, as "
            "build() in tests/data/llama_cpp/regenerate.py does, and set the variable to its folder"
        )
    return path.absolute()


def our_rates(what: str, model: Path, variant: str, **asked: Any) -> dict[str, float]:
    """Tokens/s by phase, the median of a fresh process's repetitions."""
    job = {"model": str(model), "variant": variant, "threads": available_cpus(), **asked}
    command = [sys.executable, str(HERE / "ours.py"), what, json.dumps(job)]
    printed = _run(command, bounded(os.environ) | one_allocator(os.environ))  # as a worker has them
    return {phase: median(rates) for phase, rates in json.loads(printed.splitlines()[-1]).items()}


def their_rates(command: Sequence[str]) -> dict[str, float]:
    """Tokens/s by phase, the median of llama-bench's repetitions."""
    tests = json.loads(_run(command))
    return {"prefill" if each["n_prompt"] else "decode": median(each["samples_ts"]) for each in tests}


def _run(command: Sequence[str], settings: Mapping[str, str] = MappingProxyType({})) -> str:
    """What a command prints, with ``settings`` in its environment; it ends the harness when the command fails."""
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def rates_of(seconds: Pairs, tokens: int) -> Pairs:
    return [tokens / each for each in seconds[0]], [tokens / each for each in seconds[1]]


def drain(tokens: Iterable[int]) -> None:
    for _ in tokens:
        pass
