"""Subjects: one file per kind of thing that is measured; each measures a job's variant and writes a trace per prompt set."""

from __future__ import annotations

from quantbench.job import Job
from quantbench.machine import available_cpus
from quantbench.methods import Settings


def settings_of(job: Job, context: int = 0) -> Settings:
    """The settings that a job's conditions come to on this machine; ``context`` in tokens."""
    return Settings(checkpoint=job.checkpoint, threads=job.conditions.threads or available_cpus(), context=context)
