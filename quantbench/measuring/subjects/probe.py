"""A job of kind ``probe``: try what the variant can do, and write down each finding at once.

The result is kept in the cache, so a second run costs nothing. A process that dies loses only the probes it had not finished,
and the next run tries again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from quantbench.core import cache
from quantbench.core.errors import QuantbenchError
from quantbench.core.job import Checkpoint, Job
from quantbench.core.machine import describe, versions
from quantbench.core.scenario import Spec
from quantbench.core.trace import Probe, Probes
from quantbench.core.wire import read, write
from quantbench.measuring.passes.probes import CONTEXT, NAMES, PROBES_FILE, ProbedVariant, probe_all
from quantbench.measuring.subjects import settings_of
from quantbench.methods import METHODS
from quantbench.runtimes import open_tokenizer, packages

_KIND = "probe-capability"
_MAKERS = ("quantbench.measuring.passes.probes", "quantbench.measuring.passes.finetune")


class Ending(Protocol):
    """Why a job failed."""

    @property
    def reason(self) -> str:
        """In a sentence."""


Work = Callable[[], tuple[Path, Ending | None]]
"""Runs the probe job in a separate process; gives its folder, and why it failed, if it did."""


def measure(job: Job, folder: Path) -> None:
    """Probe the job's variant; each finding is on disk before the next one is tried."""
    METHODS[job.variant.method].check(job.checkpoint)
    start = open_tokenizer(job.model).encode("") or [0]
    subject = ProbedVariant(spec=job.spec, settings=settings_of(job, CONTEXT), start=start)
    found: Probes = {}
    for name, each in probe_all(subject):
        found[name] = each
        write(folder / PROBES_FILE, found)


def probed(spec: Spec, checkpoint: Checkpoint, work: Work) -> Path | None:
    """The file with the variant's probes: from the cache, or made by ``work``; an incomplete one is noted but not cached.

    None where nothing can be probed, weights are random, or nothing can be written.
    """
    if not checkpoint.comparable or METHODS[spec.variant.method].endpoint:
        return None
    found: list[Path] = []

    def make(folder: Path) -> None:
        done, failure = work()
        found.append(_noted(done, failure.reason) if failure else done / PROBES_FILE)
        if failure:
            raise QuantbenchError(failure.reason)
        shutil.copyfile(found[0], folder / PROBES_FILE)

    try:
        return cache.artifact(_KIND, _asked(spec, checkpoint), make) / PROBES_FILE
    except (QuantbenchError, OSError):  # a failure here costs the probes, never the row
        return found[0] if found else None


def _asked(spec: Spec, checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "content": checkpoint.content_hash, "variant": spec.variant.name, "device": spec.conditions.device,
        "seed": spec.conditions.seed,
        "recipe": dict(METHODS[spec.variant.method].recipe(spec)), "machine": describe().fingerprint,
        "versions": versions(("quantbench", *packages())),
        "made_by": cache.made_by(__name__, *_MAKERS, _module(spec)),
    }  # fmt: skip


def _module(spec: Spec) -> str:
    return METHODS[spec.variant.method].opener.__module__


def _noted(folder: Path, failure: str) -> Path:
    """The findings until the process ended, and why the rest is missing."""
    path = folder / PROBES_FILE
    found = read(path, Probes) if path.is_file() else {}
    undone = Probe(found=None, note=f"the probe process ended: {failure}")
    write(path, {name: found.get(name, undone) for name in NAMES})
    return path
