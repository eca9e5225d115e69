"""What a worker calls a failure: what ran out of memory, what cannot run here, and everything else."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch

from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.job import FAILURE_FILE, Job, Task
from quantbench.core.scenario import Conditions, Effort, Precision, Scenario, Variant
from quantbench.measuring.worker import run_job
from quantbench.methods import METHODS, Settings, method
from quantbench.models.checkpoint import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "oom", "OutOfMemoryError: CUDA out of memory. Tried"),
        (RuntimeError("CUDA error: out of memory\nCompile with"), "oom", "RuntimeError: CUDA error: out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom", "RuntimeError: "),
        (ModelError("llama.cpp cannot load x (unable to allocate CUDA0 buffer); free memory"), "oom", "llama.cpp cannot"),
        (MemoryError("out of memory: 6 GB of 14 GB of weights"), "oom", "out of memory: 6 GB of 14 GB of weights"),
        (MemoryError(), "oom", "MemoryError: "),
        (UnsupportedError("torchao has no kernel here"), "skipped", "torchao has no kernel here"),
        (ModelError("it is damaged"), "error", "it is damaged"),
        (RuntimeError("CUDA error: invalid device ordinal"), "error", "RuntimeError: CUDA error: invalid device ordinal"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_failures_have_a_status_and_a_sentence(
    error: Exception, status: str, reason: str, *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plug_in: Callable[..., None]
) -> None:
    @method("failing", precisions=[Precision(name="w8", bits=8)], requires=[])
    @contextmanager
    def open_failing(scenario: Scenario, settings: Settings) -> Iterator[Any]:
        raise error
        yield

    plug_in(METHODS, open_failing)
    monkeypatch.setattr("quantbench.measuring.subjects.causal.memory_bandwidth", lambda *_: "not here")
    Job(
        kind="measure", checkpoint=resolve("canary"), variant=Variant(method="failing", precision="w8"),
        conditions=Conditions(threads=1), effort=Effort(),
        tasks=(Task(prompts_name="one", prompts=("a prompt",), reference=None),),
    ).save(tmp_path)  # fmt: skip
    assert run_job(tmp_path) == 1
    failure = json.loads((tmp_path / FAILURE_FILE).read_text())
    assert failure["status"] == status
    assert failure["reason"].startswith(reason)
    assert type(error).__name__ in failure["traceback"]
