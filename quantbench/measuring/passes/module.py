"""The passes over a module without tokens: single calls in timed rounds, and its outputs against the reference's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from quantbench.core.scenario import Effort
from quantbench.core.trace import Calls, OutputDistance
from quantbench.measuring.passes.rounds import AnchorTurn, until_steady
from quantbench.methods import LoadedModule

INPUTS = 10
"""Timed inputs; every round calls all of them equally often."""
COMPARED_INPUTS = 64
_ROUND_S = 0.03
"""The least length of a round, in seconds: in a shorter one, a single delay by the scheduler would decide the figure."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A loaded module and the inputs that it is called on."""

    module: LoadedModule
    inputs: Sequence[Any]

    @classmethod
    def seeded(cls, module: LoadedModule, seed: int) -> Caller:
        """With its seeded inputs."""
        return cls(module, [module.example(seed, index) for index in range(INPUTS)])

    def round(self, sweeps: int = 1) -> tuple[float, ...]:
        """Seconds of the calls on every input, one after another, ``sweeps`` times."""
        return tuple(self.call(index) for _ in range(sweeps) for index in range(len(self.inputs)))

    def call(self, index: int) -> float:
        """Seconds of one call."""
        value = self.inputs[index]
        started = time.perf_counter()
        self.module.call(value)
        return time.perf_counter() - started


def measure_calls(
    variant: Caller,
    anchor: Caller | None,
    effort: Effort,
    *,
    after_round: Callable[[], None] = lambda: None,
    spoilt: Callable[[], bool] = lambda: False,
) -> tuple[Calls, ...]:
    """Timed rounds of calls, alternating with the anchor's; see ``passes.latency`` for when they stop.

    The earlier passes warmed the variant up; one sweep warms the rest, and another shows how many sweeps make a round.
    """
    variant.round()
    sweeps = max(1, math.ceil(_ROUND_S / sum(variant.round())))
    turn = AnchorTurn(anchor.call, INPUTS, float, most=sweeps * INPUTS) if anchor else None

    def take(_: int) -> Calls:
        calls = variant.round(sweeps)
        after_round()
        return Calls(variant=calls, anchor=turn.take(sum(calls)) if turn else ())

    return until_steady(take, lambda each: median(each.variant), effort, spoilt=spoilt)


def compare_outputs(variant: LoadedModule, reference: LoadedModule, seed: int) -> OutputDistance:
    """The outputs on seeded inputs as one vector each: their cosine in float64, and the largest absolute difference."""
    import numpy as np

    ours, theirs = (
        np.concatenate([each.call(each.example(seed, index)).ravel() for index in range(COMPARED_INPUTS)], dtype=np.float64)
        for each in (variant, reference)
    )
    norms = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return OutputDistance(
        inputs=COMPARED_INPUTS,
        cosine=float(ours @ theirs) / norms if norms else math.nan,
        max_abs_error=float(np.abs(ours - theirs).max()),
    )
