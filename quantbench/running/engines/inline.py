"""The inline engine: no process of its own. For debugging; one crash ends everything."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from quantbench.core.job import Failure, Job
from quantbench.running.engines import Engine, OpenEngine, reported_failure


class InlineRunner:
    """Runs jobs in this process; a timeout cannot be kept here."""

    def preloaded(self, job: Job) -> Mapping[str, float]:
        """See Runner; nothing is inherited."""
        return {}

    def run(self, folder: Path, timeout_s: float) -> Failure | None:
        """See Runner; ``timeout_s`` is not enforced."""
        from quantbench.measuring.worker import run_job

        failed = run_job(folder)
        _let_go()
        return reported_failure(folder) if failed else None


def _let_go() -> None:
    """Free what a job left, which may hold a model: the next one must find the memory that it would have alone."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def open_inline(device: str) -> Iterator[OpenEngine]:
    """Nothing to start."""
    yield InlineRunner()


INLINE = Engine("inline", "in this process, for debugging: no isolation, no timeout", open_inline)
