"""How often the 95 % intervals hold the truth, and how often two equal variants are told apart: by seeded simulation.

    python bench/harness/coverage.py [REPETITIONS]

Prints Markdown tables. Nothing is loaded and nothing is timed; 2000 repetitions take some minutes on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np  # noqa: TID253 - a script

from quantbench.core.statistics import (
    bca_interval,
    blocks,
    mean_interval,
    minimum_detectable_effect,
    paired_difference,
    t_interval,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

REPETITIONS = 2000
SEED = 20261122
CLUSTERS = (10, 20, 30, 50, 100)
PROMPT_POSITIONS = 128
"""Of the single prompt whose positions are compared in blocks: the default continuation."""
BLOCK_SIZES = (1, 8, 16, 32)
SLOW = 0.9
WARM_UP = 100
CORRELATIONS = (
    ("none", 0.0, 0.0),
    ("neighbours 0.1", 0.1, 0.0),
    ("neighbours 0.4", 0.4, 0.0),
    ("as on the canary: neighbours 0.1, and 0.03 that fades over ten positions", 0.1, 0.03),
)


def normal(rng: np.random.Generator, clusters: int) -> NDArray[np.float64]:
    """Prompt means of standard deviation 1/2 around 1, noise of 1 within."""
    return rng.normal(1.0, 0.5, (clusters, 1)) + rng.normal(0.0, 1.0, (clusters, 16))


def lognormal(rng: np.random.Generator, clusters: int) -> NDArray[np.float64]:
    """Strongly skewed: logs of prompt means and of the noise within, a factor, have a standard deviation of 1 each."""
    return _lognormal(rng, (clusters, 1), 1.0) * _lognormal(rng, (clusters, 16), 1.0)


def like_canary(rng: np.random.Generator, clusters: int) -> NDArray[np.float64]:
    """As KLD is on the canary over 34 variants: the same with 0.15 between prompts and 1.2 over a prompt's 128 positions."""
    return _lognormal(rng, (clusters, 1), 0.15) * _lognormal(rng, (clusters, PROMPT_POSITIONS), 1.2)


def _lognormal(rng: np.random.Generator, shape: tuple[int, int], deviation: float) -> NDArray[np.float64]:
    """Of mean 1."""
    return rng.lognormal(-(deviation**2) / 2, deviation, shape)


POPULATIONS: Mapping[str, Draw] = {"normal": normal, "lognormal": lognormal, "as on the canary": like_canary}


def coverage(repetitions: int) -> Iterator[Sequence[str]]:
    """Share of intervals that hold the mean 1 (lie below it / lie above it), in percent, and which interval quantbench uses."""
    yield ("population", "clusters", "t", "BCa", "used")
    for name, draw in POPULATIONS.items():
        rng = np.random.default_rng(SEED)
        for clusters in CLUSTERS:
            labels = _labels(draw(rng, clusters))
            ends: dict[str, list[tuple[float, float]]] = {"t": [], "bca": []}
            for _ in range(repetitions):
                values = draw(rng, clusters).ravel().tolist()
                ends["t"].append(t_interval(values, labels))
                ends["bca"].append(bca_interval(values, labels, seed=int(rng.integers(2**32))))
            used = mean_interval(values, labels)
            assert used is not None
            yield (name, str(clusters), *map(_held, ends.values()), used.kind)


def _held(ends: Sequence[tuple[float, float]]) -> str:
    below, above = sum(high < 1.0 for _, high in ends), sum(low > 1.0 for low, _ in ends)
    held, *missed = (_percent(count, len(ends)) for count in (len(ends) - below - above, below, above))
    return f"{held} ({' / '.join(missed)})"


def false_positives(repetitions: int) -> Iterator[Sequence[str]]:
    """Share of ``paired_difference`` with p < 0.05 between two variants of equal mean, clustered by prompt."""
    yield ("difference of two variants", *(f"{clusters} clusters" for clusters in CLUSTERS))
    kinds: Mapping[str, tuple[Draw, Draw]] = {
        "normal": (normal, normal),
        "lognormal": (lognormal, lognormal),
        "lognormal less normal": (lognormal, normal),
        "as on the canary": (like_canary, like_canary),
    }
    for name, (one, other) in kinds.items():
        rng = np.random.default_rng(SEED)
        cells = []
        for clusters in CLUSTERS:
            labels = _labels(one(rng, clusters))
            found = 0
            for _ in range(repetitions):
                difference = paired_difference(
                    one(rng, clusters).ravel().tolist(), other(rng, clusters).ravel().tolist(), labels
                )
                found += difference is not None and difference.p_value < 0.05
            cells.append(_percent(found, repetitions))
        yield (name, *cells)


def single_prompt(repetitions: int) -> Iterator[Sequence[str]]:
    """The same within one prompt of 128 positions, whose differences are correlated along the text, by block size."""
    yield ("correlation of positions", *(f"blocks of {size}" for size in BLOCK_SIZES))
    for name, near, far in CORRELATIONS:
        lines = _series(np.random.default_rng(SEED), near, far, repetitions)
        cells = []
        for size in BLOCK_SIZES:
            labels = blocks(PROMPT_POSITIONS, size)
            differences = [paired_difference(line, [0.0] * PROMPT_POSITIONS, labels) for line in lines]
            found = sum(each is not None and each.p_value < 0.05 for each in differences)
            cells.append(_percent(found, repetitions))
        yield (name, *cells)


def _series(rng: np.random.Generator, near: float, far: float, lines: int) -> list[list[float]]:
    """Series of mean 0: AR(1) by ``near`` with t(3) innovations, and of the variance a share ``far`` that changes slowly."""
    fast = _autoregressive(rng.standard_t(3, (lines, WARM_UP + PROMPT_POSITIONS)), near)
    slow = _autoregressive(rng.normal(size=(lines, WARM_UP + PROMPT_POSITIONS)), SLOW)
    scale = sqrt(far / (1 - far) * 3 / (1 - near**2) * (1 - SLOW**2))
    values: list[list[float]] = (fast + scale * slow)[:, WARM_UP:].tolist()
    return values


def _autoregressive(shocks: NDArray[np.float64], correlation: float) -> NDArray[np.float64]:
    series = shocks.copy()
    for position in range(1, series.shape[1]):
        series[:, position] += correlation * series[:, position - 1]
    return series


def power(repetitions: int) -> Iterator[Sequence[str]]:
    """Share of p < 0.05 where the true difference is the minimum detectable effect of the true standard error."""
    yield ("clusters", "minimum detectable effect, standard errors", "found")
    rng = np.random.default_rng(SEED)
    for clusters in CLUSTERS:
        effect = minimum_detectable_effect(1.0, clusters - 1)
        shift = effect / sqrt(clusters)
        found = 0
        for _ in range(repetitions):
            difference = paired_difference(rng.normal(shift, 1.0, clusters).tolist(), [0.0] * clusters, range(clusters))
            found += difference is not None and difference.p_value < 0.05
        yield (str(clusters), f"{effect:.2f}", _percent(found, repetitions))


def _labels(values: NDArray[np.float64]) -> list[int]:
    labels: list[int] = np.repeat(np.arange(len(values)), values.shape[1]).tolist()
    return labels


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:.1f}"


def main() -> None:
    """Print the tables."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else REPETITIONS
    error = 196 * sqrt(0.05 * 0.95 / repetitions)
    print(f"{repetitions} repetitions, seed {SEED}: a share of 95 % or 5 % is good to ±{error:.1f} points")
    for table in (coverage, false_positives, single_prompt, power):
        print(f"\n{(table.__doc__ or '').splitlines()[0]}\n")
        for number, cells in enumerate(table(repetitions)):
            print(f"| {' | '.join(cells)} |", flush=True)
            if not number:
                print("|---" * len(cells) + "|")


if __name__ == "__main__":
    main()
