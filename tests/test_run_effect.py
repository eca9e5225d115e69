"""What all cells of a run do together: false alarms where nothing changed, and what is still found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from quantbench.run_effect import RUN_SPREAD
from quantbench.verdict import Cell, Finding, Side, Verdict, judge

CELLS, MATRICES = 12, 60
NOISE = 0.01


def matrix(rng: np.random.Generator, *, runs: int = 1, tail: float = 30.0, one: float = 1.0, every: float = 1.0) -> list[Cell]:
    """Five processes a side and five more of the candidate, in so many runs; cell 0 is ``one`` times as fast, all ``every``.

    A run moves the ratios of all its cells by Student's t of ``tail`` degrees, scaled to the spread of runs, as logarithms.
    """
    scale = RUN_SPREAD / np.sqrt(tail / (tail - 2))
    effects = [rng.standard_t(tail, runs) * scale for _ in range(2)]
    cells = []
    for index in range(CELLS):
        factor = every * (one if index == 0 else 1.0)
        sides = []
        for candidate, processes in ((0, 5), (1, 10)):
            logs = rng.normal(0, NOISE, processes) + np.resize(effects[candidate], processes)
            values = np.exp(logs) * (factor if candidate else 1.0)
            sides.append(tuple(values))
        cells.append(
            Cell(
                name=str(index), better="higher", baseline=Side(raws=sides[0], ratios=sides[0], runs=runs),
                candidate=Side(raws=sides[1][:5], ratios=sides[1][:5], runs=runs),
                again=Side(raws=sides[1][5:], ratios=sides[1][5:], runs=runs),
            )
        )  # fmt: skip
    return cells


def told(found: list[Finding], *verdicts: Verdict) -> list[str]:
    return [each.name for each in found if each.verdict in verdicts]


@pytest.mark.parametrize("tail", [30.0, 3.0])
def test_a_run_effect_of_three_percent_raises_no_alarm(tail: float) -> None:
    """The alarms are no more than 1 % of matrices explain; without the model most of these have one."""
    rng = np.random.default_rng(1)
    alarms = sum(bool(told(judge(matrix(rng, tail=tail)), Verdict.WORSE, Verdict.BETTER)) for _ in range(MATRICES))
    assert alarms <= stats.binom.ppf(0.999, MATRICES, 0.01)


def test_a_slowdown_of_one_cell_is_found_beside_a_run_effect() -> None:
    rng = np.random.default_rng(2)
    found = [told(judge(matrix(rng, one=0.9)), Verdict.WORSE, Verdict.BETTER) for _ in range(MATRICES)]
    assert sum(each == ["0"] for each in found) >= 0.9 * MATRICES


def test_a_slowdown_of_all_cells_takes_more_runs_or_is_large() -> None:
    rng = np.random.default_rng(3)
    single = [judge(matrix(rng, every=0.87)) for _ in range(20)]
    assert sum(len(told(each, Verdict.INSUFFICIENT)) > CELLS / 2 for each in single) >= 10
    assert all(each.common is not None for found in single for each in found if each.verdict is Verdict.INSUFFICIENT)
    several = [judge(matrix(rng, runs=4, every=0.87)) for _ in range(20)]
    assert sum(len(told(each, Verdict.WORSE)) == CELLS for each in several) >= 10
    large = [judge(matrix(rng, every=0.6)) for _ in range(20)]
    assert all(len(told(each, Verdict.WORSE)) == CELLS for each in large)
