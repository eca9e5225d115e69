"""What a job costs more on a Ray cluster than with the process engine, once the cluster is up."""

from __future__ import annotations

import time
from collections.abc import Iterator

import jobs
from ratios import CannotRunError, Result

REPEATS = 6


def ray_overhead() -> Iterator[Result]:
    """Wall time of a run over its jobs, on a cluster of this machine and by processes.

    Of the whole run, as jobs are sent ahead: the next one has begun when its turn comes.
    """
    try:
        import ray
    except ImportError:
        raise CannotRunError("Ray is not installed; pip install '.[ray]'") from None

    bare, ours = _per_job("process"), _per_job("ray")
    ray.shutdown()
    yield Result("Ray over processes, per job (in s)", f"{ours:.2f} s", f"{bare:.2f} s", ours - bare, "<= 1.0")


def _per_job(engine: str) -> float:
    """Seconds a job takes, the first ones, for which libraries and references are loaded, included."""
    scenarios = jobs.short_jobs(("fp32", "bf16"), REPEATS)
    with jobs.runner(engine, scenarios) as runner:
        started = time.perf_counter()
        for scenario in scenarios:
            jobs.measure(runner, scenario)
        return (time.perf_counter() - started) / len(scenarios)
