"""What all cells of a run do together: false alarms where nothing changed, and what is still found."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from quantbench.judge.compare import Change, Comparison, compare

HARNESS = Path(__file__).parents[1] / "bench" / "harness"
MATRICES = 40


@pytest.fixture(scope="module")
def simulated() -> Any:
    """The harness's simulated sides, which ``run-effect`` judges by the thousand."""
    spec = spec_from_file_location("simulated", HARNESS / "simulated.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compared(simulated: Any, rng: np.random.Generator, *, runs: int = 1, tail: float = 30.0, **changed: float) -> Comparison:
    """Five processes a run, and as many again of the candidate: of the same run, or where there are several of further ones."""
    noise = simulated.Noise(tail=tail)
    baseline = simulated.side(rng, noise, runs=runs, each=5)
    again = {"runs": 1, "each": 10} if runs == 1 else {"runs": 2 * runs, "each": 5}
    return compare(baseline, simulated.side(rng, noise, **again, **changed))


def told(found: Comparison, *verdicts: Change) -> list[str]:
    return [each.scenario_id for verdict in verdicts for each in found.of(verdict)]


@pytest.mark.parametrize("tail", [30.0, 3.0])
def test_a_run_effect_of_three_percent_raises_no_alarm(simulated: Any, tail: float) -> None:
    """The alarms are no more than 1 % of matrices explain; without the model most of these have one."""
    rng = np.random.default_rng(1)
    alarms = sum(bool(told(compared(simulated, rng, tail=tail), Change.WORSE, Change.BETTER)) for _ in range(MATRICES))
    assert alarms <= stats.binom.ppf(0.999, MATRICES, 0.01)


def test_a_slowdown_of_one_cell_is_found_beside_a_run_effect(simulated: Any) -> None:
    rng = np.random.default_rng(2)
    found = [told(compared(simulated, rng, one=0.9), Change.WORSE, Change.BETTER) for _ in range(MATRICES)]
    assert sum(each == ["0"] for each in found) >= 0.9 * MATRICES


def test_a_slowdown_of_all_cells_takes_more_runs_or_is_large(simulated: Any) -> None:
    rng = np.random.default_rng(3)
    single = [compared(simulated, rng, every=0.87) for _ in range(15)]
    assert sum(len(told(each, Change.INSUFFICIENT)) > simulated.CELLS / 2 for each in single) >= 8
    assert all("in more runs" in entry.reason for found in single for entry in found.of(Change.INSUFFICIENT))
    several = [compared(simulated, rng, runs=4, every=0.87) for _ in range(15)]
    assert sum(len(told(each, Change.WORSE)) == simulated.CELLS for each in several) >= 8
    large = [compared(simulated, rng, every=0.6) for _ in range(15)]
    assert all(len(told(each, Change.WORSE)) == simulated.CELLS for each in large)
