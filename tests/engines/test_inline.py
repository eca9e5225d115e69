"""The inline engine: what a job leaves behind is let go before the next one."""

from __future__ import annotations

import os
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from quantbench.core.job import Job, Task
from quantbench.core.record import Status
from quantbench.core.scenario import Conditions, Effort, Precision, Scenario, Variant
from quantbench.methods import METHODS, Settings, method
from quantbench.models.checkpoint import resolve
from quantbench.running.engines.inline import open_inline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest


class Weights:
    """Something large that refers to itself, as modules with hooks do."""

    def __init__(self) -> None:
        self.own = self


def test_the_allocator_has_a_setting_while_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    with open_inline("cuda"):
        assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:False"
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    with open_inline("cuda"):
        assert os.environ["PYTORCH_ALLOC_CONF"] == "backend:native"
    assert os.environ["PYTORCH_ALLOC_CONF"] == "backend:native"


def test_a_job_that_ran_out_of_gpu_memory_leaves_none_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plug_in: Callable[..., None]
) -> None:
    left: list[weakref.ref[Weights]] = []
    alive: list[bool] = []

    @method("large", precisions=[Precision(name="w8", bits=8)], requires=[])
    @contextmanager
    def open_large(scenario: Scenario, settings: Settings) -> Iterator[Any]:
        weights = Weights()
        left.append(weakref.ref(weights))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        yield weights

    plug_in(METHODS, open_large)
    monkeypatch.setattr("quantbench.measuring.subjects.causal.memory_bandwidth", lambda *_: "not here")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(any(each() for each in left)))
    Job(
        kind="measure", checkpoint=resolve("canary"), variant=Variant(method="large", precision="w8"),
        conditions=Conditions(threads=1), effort=Effort(),
        tasks=(Task(prompts_name="one", prompts=("a prompt",), reference=None),),
    ).save(tmp_path)  # fmt: skip
    with open_inline("cpu") as runner:
        failure = runner.run(tmp_path, 60)
    assert failure is not None
    assert failure.status == Status.OOM
    assert failure.reason == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert len(left) == 1
    assert alive[-1] is False  # the cache was emptied after the weights were gone, not before
