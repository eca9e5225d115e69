"""Subjects: one file per kind of thing to measure; each measures a job's variant and writes one trace per prompt set."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

from quantbench.core.errors import ModelError
from quantbench.core.job import Job
from quantbench.core.machine import available_cpus
from quantbench.core.protocols import N_GPU_LAYERS
from quantbench.core.trace import Trace
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


def without_times(trace: Trace, why: str, *parts: str) -> Trace:
    """The trace without what timing gave: ``why`` these ``parts`` are absent; unchanged where timings were wanted."""
    if not why:
        return trace
    absent = {**dict.fromkeys(("import_s", "load_s", "quantize_s", *parts), why), **trace.absent}
    return replace(trace, load_s=None, quantize_s=None, score_s=(), absent=absent)


def check_device(device: str, facts: Mapping[str, str], name: str) -> None:
    """Raise ModelError unless the opened variant ``name`` is entirely on the requested ``device``, or as far as was asked.

    A library that silently falls back to the CPU must not produce a slow row that looks valid.
    The fact ``device`` says where its weights were found, several places joined by ``+``. A method that does not say is
    trusted on the CPU, where nothing can fall back; elsewhere a row would name a device that was never checked.
    """
    found = facts.get("device", "")
    if not found and device != "cpu":
        raise ModelError(
            f"device {device!r} was asked for and {name} does not say where its weights are; "
            "its method must report that in its facts, as 'device'"
        )
    there = [device in (place, place.partition(":")[0]) for place in found.split("+") if place]
    if not (any(there) if N_GPU_LAYERS in facts else all(there)):
        raise ModelError(
            f"device {device!r} was asked for and weights of {name} are on {found.replace('+', ' and ')}; "
            "free memory on the device, or request the device where they are"
        )
