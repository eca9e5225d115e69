"""The inline engine: no separate process. For debugging; one crash ends everything."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from quantbench.core.allocator import one_allocator
from quantbench.core.disks import full
from quantbench.core.environment import environment
from quantbench.core.job import Failure, Job
from quantbench.core.record import Status
from quantbench.running.engines import Engine, OpenEngine, reported_failure


class InlineRunner:
    """Runs jobs in this process, where a timeout cannot be enforced."""

    def preloaded(self, job: Job) -> Mapping[str, float]:
        """See OpenEngine; nothing is inherited."""
        return {}

    def run(self, folder: Path, timeout_s: float) -> Failure | None:
        """See OpenEngine; ``timeout_s`` is not enforced."""
        from quantbench.measuring.worker import run_job

        failed = run_job(folder)
        _let_go()
        if not failed:
            return None
        unsaid = full(folder) or "the job failed, and could not write why"
        return reported_failure(folder) or Failure(status=Status.ERROR, reason=unsaid)


def _let_go() -> None:
    """Free what a job left behind, perhaps a model, so that the next one has as much memory as it would have alone."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def open_inline(device: str) -> Iterator[OpenEngine]:
    """Nothing to start."""
    with environment(one_allocator(os.environ)):
        yield InlineRunner()


INLINE = Engine("inline", "in this process, for debugging: no isolation, no timeout", open_inline)
