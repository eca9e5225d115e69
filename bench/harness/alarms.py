"""Is a comparison right where runs move their figures? False alarms where nothing changed, and what is still found.

    python bench/harness/run.py run-effect

Matrices are simulated; QUANTBENCH_HARNESS_MATRICES is how many a line. Baseline and candidate differ by what runs, processes
and other work do. A candidate has twice the processes, whose later half is the second measurement: of the same run, the
harder case, or of as many further runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from typing import NamedTuple

from ratios import Result
from simulated import Noise, side

from quantbench.core.machine import available_cpus
from quantbench.judge.compare import Change, compare

MATRICES = 2000
POWER_SHARE = 0.1
SLOWED = 0.9
SEED = 5


class Case(NamedTuple):
    """A kind of machine, how many runs a side has, and how many processes a run."""

    name: str
    noise: Noise
    runs: int = 1
    each: int = 5
    found: str = ">= 0.8"


_BESIDE = Noise(processes=0.03, disturbed=0.3)
CASES = (
    Case("no run effect", Noise(runs=0.0)),
    Case("run effect 1 %", Noise(runs=0.01)),
    Case("run effect 3 %", Noise()),
    Case("run effect 3 %, t3", Noise(tail=3.0)),
    Case("run effect 3 %, t3, 2 runs", Noise(tail=3.0), runs=2),
    Case("run effect 3 %, t3, run each", Noise(tail=3.0), runs=5, each=1, found=">= 0"),
    Case("beside load, 3 %", _BESIDE, each=10, found=">= 0"),
    Case("beside load, 3 %, t3", _BESIDE._replace(tail=3.0), each=10, found=">= 0"),
    Case("beside load, 3 %, t3, 2 runs", _BESIDE._replace(tail=3.0), runs=2, each=10, found=">= 0"),
)


def run_effect() -> Iterator[Result]:
    """Matrices in which nothing changed and something was told, and those whose one slowed cell was found."""
    matrices = int(os.environ.get("QUANTBENCH_HARNESS_MATRICES", MATRICES))
    tries = max(1, round(matrices * POWER_SHARE))
    with ProcessPoolExecutor(available_cpus()) as pool:
        alarms, found = pool.map(_alarms, CASES, repeat(matrices)), pool.map(_found, CASES, repeat(tries))
        for case, count in zip(CASES, alarms, strict=True):
            yield Result(f"A/A alarms, {case.name}", f"{count}", f"of {matrices}", count / matrices, "<= 0.01")
        for case, count in zip(CASES, found, strict=True):
            yield Result(f"10 % slower found, {case.name}", f"{count}", f"of {tries}", count / tries, case.found)


def _alarms(case: Case, matrices: int) -> int:
    """In how many matrices something is told though nothing changed."""
    return sum(map(bool, _told(case, matrices)))


def _found(case: Case, matrices: int) -> int:
    """In how many matrices the one slowed cell is told."""
    return sum(each.get("0") is Change.WORSE for each in _told(case, matrices, one=SLOWED))


def _told(case: Case, matrices: int, one: float = 1.0) -> Iterator[dict[str, Change]]:
    """Of each matrix the cells that are said to have changed."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    further = (case.runs, 2 * case.each) if case.runs == 1 else (2 * case.runs, case.each)
    for _ in range(matrices):
        baseline = side(rng, case.noise, runs=case.runs, each=case.each)
        candidate = side(rng, case.noise, runs=further[0], each=further[1], one=one)
        found = compare(baseline, candidate)
        yield {each.scenario_id: each.verdict for each in (*found.of(Change.WORSE), *found.of(Change.BETTER))}
