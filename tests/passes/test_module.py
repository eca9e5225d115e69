"""The passes over a module whose time and outputs are made up."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quantbench.core.scenario import Effort
from quantbench.measuring.passes.module import COMPARED_INPUTS, INPUTS, Caller, compare_outputs, measure_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quantbench.core.trace import Calls

QUARTER = 0.25
SIX = Effort(min_rounds=6, max_rounds=6)


@dataclass
class Clock:
    """Time that passes only when something is done."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class FakeModule:
    """Takes ``call_s`` a call, the first ``cold`` times as long; its output is ``output`` of (seed, index)."""

    clock: Clock = field(default_factory=Clock)
    call_s: float = 0.01
    cold: float = 1.0
    output: Callable[[int, int], Any] = lambda seed, index: [seed, index]
    asked: list[tuple[int, int]] = field(default_factory=list)

    def example(self, seed: int, index: int) -> tuple[int, int]:
        return seed, index

    def call(self, value: tuple[int, int]) -> Any:
        self.clock.now += self.call_s * (1.0 if self.asked else self.cold)
        self.asked.append(value)
        return np.asarray(self.output(*value), dtype=np.float32)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The passes' clock."""
    made = Clock()
    for module in ("module", "rounds"):
        monkeypatch.setattr(f"quantbench.measuring.passes.{module}.time", made)
    return made


def _seconds(rounds: Sequence[Calls]) -> tuple[float, float]:
    return sum(sum(each.variant) for each in rounds), sum(sum(each.anchor) for each in rounds)


def test_a_round_calls_each_input_once(clock: Clock) -> None:
    module = FakeModule(clock)
    rounds = measure_calls(Caller.seeded(module, 3), None, SIX)
    assert [len(each.variant) for each in rounds] == [INPUTS] * 6
    assert module.asked[-6 * INPUTS :] == [(3, index) for index in range(INPUTS)] * 6
    assert rounds[0].variant == pytest.approx([0.01] * INPUTS)
    assert all(each.anchor == () for each in rounds)


@pytest.mark.parametrize("call_s", [1e-5, 2e-4, 3e-3, 0.5])
def test_short_calls_are_repeated_until_a_round_lasts(call_s: float, clock: Clock) -> None:
    variant, anchor = FakeModule(clock, call_s=call_s), FakeModule(clock, call_s=call_s)
    rounds = measure_calls(Caller.seeded(variant, 0), Caller.seeded(anchor, 0), SIX)
    counts = {len(each.variant) for each in rounds}
    assert len(counts) == 1
    (count,) = counts
    assert count % INPUTS == 0
    assert 0.03 * (1 - 1e-9) <= count * call_s < max(0.03 + 1.01 * INPUTS * call_s, 2 * INPUTS * call_s)
    asked = variant.asked[-6 * count :]
    assert {asked.count(value) for value in set(asked)} == {6 * count // INPUTS}
    ours, theirs = _seconds(rounds)
    assert 0.15 < theirs / (ours + theirs) <= QUARTER * (1 + 1e-9)
    assert {len(each.anchor) for each in rounds} <= {count // 3 - 1, count // 3, count // 3 + 1}


def test_the_first_call_of_each_is_in_no_round(clock: Clock) -> None:
    cold, anchor = FakeModule(clock, cold=100.0), FakeModule(clock, cold=100.0)
    rounds = measure_calls(Caller.seeded(cold, 0), Caller.seeded(anchor, 0), SIX)
    assert max(seconds for each in rounds for seconds in (*each.variant, *each.anchor)) == pytest.approx(0.01)


@pytest.mark.parametrize("ratio", [0.05, 0.3, 1.0, 2.0, 3.3])
def test_the_anchor_takes_at_most_a_quarter_of_the_time_and_is_in_every_round(ratio: float, clock: Clock) -> None:
    variant, anchor = FakeModule(clock), FakeModule(clock, call_s=0.01 * ratio)
    rounds = measure_calls(Caller.seeded(variant, 0), Caller.seeded(anchor, 0), SIX)
    ours, theirs = _seconds(rounds)
    assert 0 < theirs <= QUARTER * (ours + theirs) * (1 + 1e-9)
    assert all(each.anchor for each in rounds)


def test_rounds_end_as_those_of_a_language_model_do(clock: Clock) -> None:
    def rounds(effort: Effort) -> int:
        return len(measure_calls(Caller.seeded(FakeModule(clock), 0), None, effort))

    assert rounds(Effort(min_rounds=7, max_rounds=30, budget_s=1e9)) == 7
    assert rounds(Effort(min_rounds=3, max_rounds=30, budget_s=1e9)) == 6
    assert rounds(Effort(min_rounds=3, max_rounds=5, budget_s=1e9)) == 5
    assert rounds(Effort(min_rounds=3, max_rounds=30, budget_s=0.0)) == 3


def _drawn(seed: int, index: int, noise: float = 0.0) -> Any:
    rng = np.random.default_rng([seed, index])
    return rng.standard_normal((2, 3)) + noise * rng.standard_normal((2, 3))


def test_outputs_are_compared_as_one_vector() -> None:
    from scipy.spatial.distance import cosine

    found = compare_outputs(FakeModule(output=lambda s, i: _drawn(s, i, 0.3)), FakeModule(output=_drawn), 5)

    ours, theirs = (
        np.concatenate([np.float32(_drawn(5, index, noise)).ravel() for index in range(COMPARED_INPUTS)]).astype(float)
        for noise in (0.3, 0.0)
    )
    assert found.inputs == COMPARED_INPUTS == 64
    assert found.cosine == pytest.approx(1 - cosine(ours, theirs), rel=1e-12)
    assert found.cosine < 0.99
    assert found.max_abs_error == pytest.approx(np.abs(ours - theirs).max(), rel=1e-12)


@pytest.mark.parametrize(("factor", "cosine"), [(1.0, 1.0), (2.0, 1.0), (-1.0, -1.0)])
def test_a_scaled_output_has_the_same_direction_and_is_off_by_its_largest_value(factor: float, cosine: float) -> None:
    found = compare_outputs(FakeModule(output=lambda _, i: [factor * i, 0]), FakeModule(output=lambda _, i: [i, 0]), 0)
    assert found.cosine == pytest.approx(cosine, rel=1e-12)
    assert found.max_abs_error == abs(factor - 1) * (COMPARED_INPUTS - 1)


def test_outputs_without_a_direction_have_no_cosine() -> None:
    found = compare_outputs(FakeModule(output=lambda _, __: [0, 0]), FakeModule(), 0)
    assert math.isnan(found.cosine)
    assert found.max_abs_error == COMPARED_INPUTS - 1
