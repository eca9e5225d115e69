"""Subjects: one file per kind of thing to measure; each measures a job's variant and writes one trace per prompt set."""

from __future__ import annotations

import sys

from quantbench.core.job import Job
from quantbench.core.machine import available_cpus
from quantbench.measuring.preload import import_library
from quantbench.methods import METHODS, Settings


def settings_of(job: Job, context: int = 0) -> Settings:
    """A job's conditions as settings for this machine; ``context`` in tokens."""
    return Settings(
        checkpoint=job.checkpoint,
        threads=job.conditions.threads or available_cpus(),
        context=context,
        batch=max(task.batch for task in job.tasks),
    )


def import_seconds(job: Job) -> float:
    """Import what the job's method needs; seconds taken, including imports inherited from the fork server."""
    inherited = {name: seconds for name, seconds in job.preloaded.items() if name in sys.modules}
    return sum(import_library(name) + inherited.get(name, 0.0) for name in METHODS[job.variant.method].requires)
