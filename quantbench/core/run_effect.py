"""What moves all figures of a run together: removed from its cells, believed, or left open. Pure functions.

Processes of one run share the state of the machine during that run (clocks, temperature, where memory lies), which moves all
their speeds alike, and no number of processes averages it away. A run of its own for each process needs nothing of this: the
effect is in the spread of the processes then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

RUN_SPREAD = 0.03
"""Standard deviation of a run's effect, of logarithms; a side of n runs has that over the square root of n."""

_USUAL = 2.0
_CERTAIN = 4.77
"""A common shift up to so many standard deviations is what runs do; from so many on it is real (two-sided 0.5 % of Student's t
with 5 degrees of freedom, as effects of runs have heavy tails); between it is left open."""

_LEAST_CELLS = 4
"""Of fewer cells a shift of all and a change of one cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Shift:
    """Of a cell what moved with all others: ``value`` and its standard ``error``, as logarithms.

    ``removed`` from the cell's own difference; ``open`` where more runs would tell.
    """

    value: float = 0.0
    error: float = 0.0
    removed: bool = False
    open: bool = False


def common_shifts(
    differences: Sequence[float], errors: Sequence[float], runs: Sequence[tuple[int, int] | None]
) -> list[Shift]:
    """The common shift of each cell, given its difference, that one's standard error, and how many runs each side comes from.

    The median over cells, with the standard error of a median of normals (sqrt(pi / 2) times that of the mean). Where there
    are too few cells each cell's difference may all be the run's. Cells whose processes are runs of their own (None) have none.
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
