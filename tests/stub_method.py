"""Methods without a model, for tests of everything around them; found through entry points like anybody's own method."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantbench.core.allocator import described
from quantbench.core.errors import UnsupportedError
from quantbench.core.record import Column, Value
from quantbench.core.scenario import Precision, Spec
from quantbench.core.trace import Reference, Trace, WeightMemory
from quantbench.methods import LoadedModel, Sampling, Settings, method
from quantbench.metrics import metric

if os.environ.get("STUB_UNWATCHED"):  # what is tested then is what is done with figures, not the machine that tests run on
    from quantbench.core import other_work
    from quantbench.core.other_work import OtherWorkWatch
    from quantbench.measuring.passes import bandwidth
    from quantbench.planning import packages
    from quantbench.running import steadiness

    packages.packages_distributions = dict  # reading all file lists takes longer; what stubs require is not installed
    other_work.busy_now = lambda: ""
    steadiness.LEAST = 1 - 1e-9
    seen = OtherWorkWatch.ended
    OtherWorkWatch.ended = lambda watch: replace(seen(watch), others_cpu=0.0, steal=0.0)
    OtherWorkWatch.crowded = lambda _: False
    bandwidth.call = lambda *_, **__: {"bytes_per_second": 1e10}  # tests/passes/test_bandwidth.py measures
if os.environ.get("STUB_WITHOUT_TORCH"):  # importing it takes longer than all that a run of stubs does
    from quantbench.measuring.preload import keep_torch_out
    from quantbench.running.engines import process

    keep_torch_out()
    process.SHARED = ("stub_method", "numpy", "transformers.models.auto.tokenization_auto")  # the server keeps it out, too
VOCABULARY = 2048
BEHAVIOURS = (
    "exact", "noisy", "killed", "segfault", "error", "memory", "gpu-memory", "aborted", "refused", "stuck", "late", "odd",
)  # fmt: skip
LONG_PROMPT = 40
NOISE, DELAY = "STUB_NOISE", "STUB_DELAY_S"
"""Variables that make the noisy stub a worse or a slower one under the same name, for tests of comparisons."""


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's own."""


class StubModel:
    """Predicts with fixed pseudo-random logits that depend on the last token; ``noise`` is added by a variant."""

    @property
    def facts(self) -> Mapping[str, str]:
        return {
            "kernel": "odd" if self._odd else "stub",
            "kv_dtype": "none",
            "oom_score_adj": Path("/proc/self/oom_score_adj").read_text().strip(),
            "opened_beside": self._beside,
            "allocator": described(),
        }

    def __init__(self, noise: float = 0.0, *, dies_late: bool = False, odd: bool = False, delay_s: float = 0.0) -> None:
        self._noise = noise
        self._beside = " ".join(name for name in ("torch", "transformers") if sys.modules.get(name))
        self._delay_s = delay_s
        self._dies_late = dies_late
        self._long_prompts = 0
        self._odd = odd

    def generate(self, prompt: Sequence[int], limit: int, sampling: Sampling | None = None) -> Iterator[int]:
        last = prompt[-1]
        self._long_prompts += len(prompt) > LONG_PROMPT
        if self._dies_late and self._long_prompts > 2:  # the memory and the similarity pass went well
            os.kill(os.getpid(), signal.SIGKILL)
        for position in range(limit):
            time.sleep(self._delay_s)
            last = int(self._logits(last).argmax()) if sampling is None else (last * 31 + position + sampling.seed) % VOCABULARY
            yield last

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[Any]:
        import numpy as np

        yield np.stack([self._logits(token) for token in tokens[first:]])

    def memory(self) -> WeightMemory:
        return WeightMemory(by_kind={"parameters": 1_000_000}, footprint_bytes=900_000)

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def _logits(self, token: int) -> Any:
        import numpy as np

        clean = np.random.default_rng(token).standard_normal(VOCABULARY, dtype=np.float32) * 3
        return clean + np.random.default_rng(token + 1).standard_normal(VOCABULARY, dtype=np.float32) * self._noise


@method(
    "stub", precisions=[Precision(name=name, bits=8) for name in BEHAVIOURS], requires=[], extra="tests", anchor="stub/exact"
)
@contextmanager
def open_stub(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """Nothing is loaded"""
    match spec.variant.precision:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "error":
            raise RuntimeError("the stub was told to fail")
        case "memory":
            raise MemoryError("the stub was told to run out of memory")
        case "gpu-memory":
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has a total capacity of 8.00 GiB")
        case "aborted":  # as llama.cpp ends: it says why, then where, then it aborts
            sys.stderr.write("CUDA error: out of memory\n  current device: 0, in function alloc at ggml-cuda.cu:501\n")
            sys.stderr.write("ggml-cuda.cu:109: CUDA error\n")
            os.abort()
        case "refused":
            raise UnsupportedError("the stub cannot run here; use another precision")
        case "stuck":
            time.sleep(600)
    behaviour = spec.variant.precision
    noisy = behaviour == "noisy"
    yield StubModel(
        noise=float(os.environ.get(NOISE, "0.3")) if noisy else 0.0,
        delay_s=float(os.environ.get(DELAY, "0")) if noisy else 0.0,
        dies_late=behaviour == "late",
        odd=behaviour == "odd",
    )


@method("absent", precisions=[Precision(name="w4", bits=4)], requires=["no_such_module"], extra="absent")
@contextmanager
def open_absent(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """A method whose package is not installed"""
    raise AssertionError("must not be opened")
    yield


@metric(Column("stub_answers", "answers", kind="int", doc="answers seen"))
def stub_answers(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """A metric from elsewhere, which fails on odd models"""
    if trace.facts["kernel"] == "odd":
        raise ValueError("too odd for this metric")
    return {"stub_answers": len(trace.answers)}
