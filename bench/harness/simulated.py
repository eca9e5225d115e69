"""Sides of a comparison that were never measured: speeds of processes with what a run, an anchor and other work do to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from quantbench.core.run_effect import RUN_SPREAD

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CELLS = 12
_TPS = 100.0
_MOVED, _SLOWED = 0.3, (0.1, 1.0)


class Noise(NamedTuple):
    """What moves figures where nothing changed; standard deviations are of logarithms, shares from 0 to 1.

    ``runs``: of what a run does to the ratios of all its cells, by Student's t of ``tail`` degrees, and to all its anchors.
    ``processes`` and ``anchors``: between processes of a run. A share ``disturbed`` of processes had other work beside it,
    which slows a speed to 0.37 to 0.9 of itself and moves its ratio by 0.3; a share ``unmarked`` of these is not told.
    """

    runs: float = RUN_SPREAD
    tail: float = 30.0
    processes: float = 0.01
    anchors: float = 0.03
    disturbed: float = 0.0
    unmarked: float = 0.05


def side(rng: np.random.Generator, noise: Noise, *, runs: int, each: int, one: float = 1.0, every: float = 1.0) -> pd.DataFrame:
    """Rows of so many runs of ``each`` processes a cell; the first cell is ``one`` times as fast, all of them ``every``."""
    import numpy as np
    import pandas as pd

    processes = runs * each
    shape = CELLS, processes
    effects, anchors = np.repeat(_effects(rng, noise, runs), each), np.repeat(rng.normal(0, noise.runs, runs), each)
    ratios = np.log(every) + effects + rng.normal(0, noise.processes, shape)
    ratios[0] += np.log(one)
    raws = ratios + anchors + rng.normal(0, noise.anchors, shape)
    hit = rng.random(shape) < noise.disturbed
    ratios += hit * rng.normal(0, _MOVED, shape)
    raws -= hit * rng.uniform(*_SLOWED, shape)
    names = np.array([f"{run:04d}" for run in range(runs)]).repeat(each)
    return pd.DataFrame(
        {
            "scenario_id": np.repeat([str(index) for index in range(CELLS)], processes),
            "run_id": np.tile(names, CELLS),
            "started_at": np.tile(names, CELLS),
            "repeat": np.tile(np.arange(each), CELLS * runs),
            "status": "ok",
            "itl_s": np.exp(-raws).ravel() / _TPS,
            "itl_ratio": np.exp(ratios).ravel(),
            "disturbed": (hit & (rng.random(shape) >= noise.unmarked)).ravel(),
        }
    )


def _effects(rng: np.random.Generator, noise: Noise, runs: int) -> np.ndarray:
    """Of each run what it does to all its ratios."""
    scale = noise.runs / (noise.tail / (noise.tail - 2)) ** 0.5
    effects: np.ndarray = rng.standard_t(noise.tail, runs) * scale
    return effects
