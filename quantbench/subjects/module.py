"""A module without tokens: calls on seeded inputs, timed against the anchor's, and its outputs against the reference's."""

from __future__ import annotations

from pathlib import Path

from quantbench.job import Job


def measure(job: Job, folder: Path) -> None:
    """Measure the job's variant; write a trace for each prompt set."""
    raise NotImplementedError
