"""In which order a fleet gets its jobs, so that no machine waits at the end while others still have work.

Machines take what fits, first come, first served. So what takes most of a machine goes first, and small jobs fill the gaps;
of equal needs the longest goes first. ``bench/harness/fleet.py`` simulates what that is worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantbench.running.placing import Need


def submission_order(jobs: Sequence[tuple[Need, float | None]]) -> list[int]:
    """The jobs, each with its need and its estimated seconds, by their index in the order in which to send them.

    One of which nobody can tell how long it takes (None) counts as the longest; equal ones keep their order.
    """

    def rank(index: int) -> tuple[bool, int, int, float]:
        need, seconds = jobs[index]
        return need.alone, need.gpus, need.cpus, math.inf if seconds is None else seconds

    return sorted(range(len(jobs)), key=rank, reverse=True)
