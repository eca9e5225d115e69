"""The shift that all figures of a run have in common: removed from its cells, taken as real, or left open. Pure functions.

Processes of one run share the machine's state during that run (clocks, temperature, memory placement), which shifts all their
speeds alike, and no number of processes averages it away. If every process is a run of its own, none of this is needed: the
effect is then part of the spread between processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

RUN_SPREAD = 0.03
"""Standard deviation of a run's effect, in logarithms; for a side of n runs it is divided by the square root of n."""

_USUAL = 2.0
_CERTAIN = 4.77
"""In standard deviations: a common shift up to ``_USUAL`` is run-to-run noise; from ``_CERTAIN`` on it is real (two-sided 0.5 %
of Student's t with 5 degrees of freedom, as effects of runs have heavy tails); in between it is left open."""

_LEAST_CELLS = 4
"""With fewer cells, a shift of all cannot be told from a change of one."""


@dataclass(frozen=True, slots=True)
class Shift:
    """The part of a cell's difference that it shares with all others: ``value`` and its standard ``error``, as logarithms.

    ``removed``: it is subtracted from the cell's own difference. ``open``: only more runs can decide.
    """

    value: float = 0.0
    error: float = 0.0
    removed: bool = False
    open: bool = False


def common_shifts(
    differences: Sequence[float], errors: Sequence[float], runs: Sequence[tuple[int, int] | None]
) -> list[Shift]:
    """The common shift of each cell, given the differences, their standard errors, and the number of runs on each side.

    It is the median over cells, with the standard error of a median of normals (sqrt(pi / 2) times that of the mean). With too
    few cells, all of a cell's difference may be the run's. Cells whose processes are each a run of their own (None) have none.
    """
    shared = {index: counts for index, counts in enumerate(runs) if counts}
    found = [Shift()] * len(differences)
    few = len(shared) < _LEAST_CELLS
    for index, (first, second) in shared.items():
        value = differences[index] if few else median(differences[each] for each in shared)
        squares = fmean(errors[each] ** 2 for each in shared) / len(shared)
        sizes = abs(value) / (RUN_SPREAD * math.sqrt(1 / first + 1 / second))
        found[index] = Shift(
            value=value,
            error=0.0 if few else math.sqrt(math.pi / 2 * squares),
            removed=sizes < _CERTAIN,
            open=_USUAL < sizes < _CERTAIN,
        )
    return found
