"""Run one job in this process: ``python -m quantbench.measuring.worker DIR`` reads its ``job.json`` and writes the traces.

Everything travels as files: ``job.json`` in; ``trace-N.json`` and ``columns-N.npz`` out, one per prompt set, or
``failure.json``. So any job can be rerun by hand.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from quantbench.core.allocator import one_allocator
from quantbench.core.checksums import of_run
from quantbench.core.disks import means_full, which_full
from quantbench.core.errors import QuantbenchError, UnsupportedError
from quantbench.core.gpus import number_gpus_by_bus
from quantbench.core.job import FAILURE_FILE, Failure, Job
from quantbench.core.record import Status
from quantbench.core.text import shortened
from quantbench.core.waiting import Rest, bounded
from quantbench.core.wire import write
from quantbench.measuring.anchor import choose
from quantbench.measuring.preload import keep_torch_out
from quantbench.measuring.subjects import causal, module, probe, served, settings_of
from quantbench.methods import METHODS
from quantbench.models.checkpoint import require_unchanged
from quantbench.runtimes import says_out_of_memory

WITHOUT_TORCH_FLAG = "--without-torch"
_OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job in the folder given on the command line; 0 when its results were written, 1 when it failed.

    ``--without-torch`` after the folder keeps torch out of the process.
    """
    folder, *rest = sys.argv[1:] if arguments is None else arguments
    if rest == [WITHOUT_TORCH_FLAG]:
        keep_torch_out()
    return run_job(Path(folder))


def run_job(folder: Path) -> int:
    """Run the job in ``folder``; any failure is written to its ``failure.json``."""
    try:
        with of_run(folder.absolute().parent):
            _run(Job.load(folder), folder)
    except Exception as error:  # noqa: BLE001 - the whole point: any failure of a job becomes its rows
        reason = which_full(folder, error) if means_full(error) else _reason(error)
        failure = Failure(status=_status(error), reason=reason, traceback=traceback.format_exc())
        with suppress(OSError):  # where there is no room for it either, the engine sees that
            print(f"{failure.status}: {failure.reason}", file=sys.stderr, flush=True)
            write(folder / FAILURE_FILE, failure)
        return 1
    return 0


def _run(job: Job, folder: Path) -> None:
    """Do the job; a checkpoint that changed meanwhile is reported first, whatever else went wrong."""
    files = [each for each in (job.checkpoint, job.original) if each]
    for each in files:
        require_unchanged(each)
    try:
        with Rest(settings_of(job).threads) as rest:
            if job.kind != "measure":  # measuring decides for itself when threads rest
                rest.begin()
            match job.kind:
                case "prepare":
                    _prepare(job)
                case "probe":
                    probe.measure(job, folder)
                case "reference":
                    causal.make_references(job, folder)
                case "measure":
                    _measure(job, folder)
    finally:
        for each in files:
            require_unchanged(each)


def sacrifice_first() -> None:
    """Ask the kernel to kill this process first when memory runs out, not the one that stores the results."""
    if _OOM_SCORE_ADJ.exists():
        _OOM_SCORE_ADJ.write_text("1000")


def _status(error: Exception) -> Status:
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, without importing it
    if known or says_out_of_memory(str(error)):
        return Status.OOM
    return Status.SKIPPED if isinstance(error, UnsupportedError) else Status.ERROR


def _reason(error: Exception) -> str:
    if isinstance(error, QuantbenchError) or (type(error) is MemoryError and str(error)):  # a full sentence of our own
        return str(error)
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {shortened(first_line)}"


def _measure(job: Job, folder: Path) -> None:
    if job.checkpoint.kind == "module":
        module.measure(job, folder)
    elif METHODS[job.variant.method].endpoint:
        served.measure(job, folder)
    else:
        causal.measure(job, folder)


def _prepare(job: Job) -> None:
    settings = settings_of(job)
    method = METHODS[job.variant.method]
    method.prepare(job.spec, settings)
    if job.effort.besides:
        method.audit(settings, job.original)  # kept in the cache, so that nothing is looked through while a model is loaded
    if job.checkpoint.speaks and not method.endpoint:
        choose(job.spec, settings, job.original)


if __name__ == "__main__":
    sacrifice_first()
    # before libgomp and torch are loaded: they read the environment only once
    os.environ.update(bounded(os.environ) | one_allocator(os.environ))
    number_gpus_by_bus()
    sys.exit(main())
