"""The Slurm engine: one job is one Slurm job, submitted by submitit; a timed one has its node for itself (``--exclusive``).

Partition, account, time limit and the like are those that sbatch reads from its own variables (``SBATCH_PARTITION`` and so
on). A job goes on when the driver is gone: its rows are in the store all the same.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from quantbench.core.cache import cache_root
from quantbench.core.children import last_words
from quantbench.core.errors import UsageError
from quantbench.core.install import install_hint
from quantbench.core.job import Failure
from quantbench.core.record import Status
from quantbench.core.scenario import Effort
from quantbench.running.engines import Engine, OpenFleet
from quantbench.running.engines.process import open_process
from quantbench.running.errand import Errand, Order, Report
from quantbench.running.placing import Need

CLUSTER = "slurm"
"""The kind of executor that submitit is asked for; tests take its ``local`` one."""

_STEPS = 4
"""A job prepares, makes the reference, probes and measures, each within the time limit of a variant."""

_ARRAY = 1000
"""The most jobs of an array; Slurm's own limit is 1001 unless it is told otherwise."""

_POLL_S = 0.2


class SlurmFleet:
    """The nodes of a Slurm cluster, which keeps the queue itself."""

    def __init__(self, executor: Any) -> None:
        """``executor`` is submitit's."""
        self._executor = executor
        self._running: list[tuple[Errand, Any]] = []
        self.notes: tuple[str, ...] = ()

    def send(self, errands: Sequence[Errand]) -> None:
        """See OpenFleet; jobs of equal needs are one array."""
        from quantbench.running.station import carry_out

        for need in dict.fromkeys(errand.need for errand in errands):
            alike = [errand for errand in errands if errand.need == need]
            self._executor.update_parameters(**parameters(need, alike[0].order.plan.effort))
            for array in (alike[first : first + _ARRAY] for first in range(0, len(alike), _ARRAY)):
                try:
                    with self._executor.batch():
                        jobs = [self._executor.submit(carry_out, errand) for errand in array]
                except (OSError, RuntimeError) as error:
                    said = last_words(str(error))  # of sbatch
                    mend = "set what it misses, such as SBATCH_PARTITION"
                    raise UsageError(f"Slurm does not take the jobs ({said}); {mend}") from None
                self._running += zip(array, jobs, strict=True)

    def ended(self, timeout_s: float) -> Sequence[tuple[Errand, Report | Failure]]:
        """See OpenFleet."""
        deadline = time.monotonic() + timeout_s
        while not (done := [sent for sent in self._running if sent[1].done()]) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        self._running = [sent for sent in self._running if sent not in done]
        return [(errand, _result(job)) for errand, job in done]

    def close(self) -> None:
        """Call off what waits or runs."""
        for _, job in self._running:
            job.cancel(check=False)


def parameters(need: Need, effort: Effort) -> dict[str, Any]:
    """What submitit is asked for on behalf of a job."""
    asked = {
        "name": "quantbench",
        "timeout_min": math.ceil(_STEPS * effort.timeout_s / 60),
        "gpus_per_node": need.gpus,
        "slurm_use_srun": False,  # a step that srun starts may be bound to fewer cores than the job has
    }
    if need.alone:
        return {**asked, "slurm_exclusive": True, "slurm_mem": "0"}  # all of the node's memory, too
    return {**asked, "cpus_per_task": need.cpus}


def _result(job: Any) -> Report | Failure:
    """What a job that ended came to."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        ended: Report | Failure = job.result()
    except FailedJobError as error:  # with the traceback of what the job raised
        return Failure(status=Status.ERROR, reason=last_words(str(error)), traceback=str(error))
    except UncompletedJobError:
        reason = f"Slurm job {job.job_id} ended as {job.state}; its log is {job.paths.stderr}"
        return Failure(status=Status.CRASHED, reason=reason)
    return ended


@contextmanager
def open_slurm(order: Order) -> Iterator[OpenFleet]:
    """Submit from here; logs go to the folder of kept jobs or the cache, either of which the nodes have to share."""
    try:
        import submitit
    except ImportError:
        raise UsageError(f"--engine slurm needs submitit, which is not installed; {install_hint('slurm')}") from None
    if CLUSTER == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UsageError("--engine slurm finds no sbatch and srun here; run it where Slurm is, or choose another --engine")
    folder = (order.plan.keep_jobs or cache_root()).absolute() / "slurm" / order.run.run_id
    fleet = SlurmFleet(submitit.AutoExecutor(folder=folder, cluster=CLUSTER))
    try:
        yield fleet
    finally:
        fleet.close()


SLURM = Engine("slurm", "each variant as a Slurm job, a timed one alone on its node (extra slurm)", open_process, open_slurm)
