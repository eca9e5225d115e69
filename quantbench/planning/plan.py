"""A plan: what a session wants measured, and how hard to try."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantbench.core.scenario import Effort, Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a session wants measured, and how hard to try.

    ``keep_jobs``: leave job folders there for a rerun by hand. ``probes``: try what each variant can do besides answering.
    ``left_out`` is what was not planned as nobody named it and it takes long; ``told`` are sentences on how else a model can be
    measured.
    """

    scenarios: tuple[Scenario, ...]
    effort: Effort
    engine: str
    keep_jobs: Path | None = None
    trust_remote_code: bool = False
    probes: bool = True
    left_out: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
