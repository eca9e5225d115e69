"""The latency pass on models whose time is made up: what is timed, when rounds stop, and what the anchor takes."""

from __future__ import annotations

import gc
import statistics
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.scenario import Effort
from quantbench.measuring.passes.latency import Contender, measure_rounds, timed_answer, together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from quantbench.core.trace import Round

QUARTER = 0.25
ALIKE = ((1, 2, 3),) * 10
SIX = Effort(min_rounds=6, max_rounds=6, budget_s=1e9)


@dataclass
class Clock:
    """Time that passes only when something is done."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class FakeModel:
    """Takes ``token_s`` a decoded token and ``prefill_s`` (the same) a prompt token, times the mood of the answer.

    Its device works on for ``device_s`` a token until it is synchronized.
    """

    clock: Clock
    token_s: float = 0.01
    prefill_s: float | None = None
    moods: Callable[[int], float] = lambda _: 1.0
    device_s: float = 0.0
    answers: Iterator[int] = field(default_factory=count)
    asked: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    pending_s: float = 0.0

    def generate(self, prompt: Sequence[int], limit: int, sampling: object = None) -> Iterator[int]:
        assert sampling is None
        self.asked.append((tuple(prompt), limit))
        mood = self.moods(next(self.answers))
        for position in range(limit):
            prompt_s = self.token_s if self.prefill_s is None else self.prefill_s
            self.clock.now += mood * (self.token_s if position else prompt_s * len(prompt))
            self.pending_s += self.device_s
            yield position

    def synchronize(self) -> None:
        self.clock.now += self.pending_s
        self.pending_s = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The pass's clock."""
    made = Clock()
    for module in ("latency", "rounds"):
        monkeypatch.setattr(f"quantbench.measuring.passes.{module}.time", made)
    return made


def _rounds(clock: Clock, prompts: Sequence[Sequence[int]], effort: Effort, anchor_s: float = 0.01) -> tuple[Round, ...]:
    variant, anchor = Contender(FakeModel(clock), prompts), Contender(FakeModel(clock, token_s=anchor_s), prompts)
    return measure_rounds(variant, anchor, 4, effort)


def test_one_answers_times_are_those_of_its_tokens(clock: Clock) -> None:
    answer, _ = timed_answer(FakeModel(clock, token_s=0.5), 7, (1, 2, 3), 4)
    assert (answer.prompt, answer.prompt_tokens) == (7, 3)
    assert answer.prefill_s == pytest.approx(1.5)
    assert answer.gaps_s == pytest.approx((0.5, 0.5, 0.5))
    assert answer.e2e_s == pytest.approx(3.0)


def test_a_device_is_waited_for_at_the_edges_of_the_phases(clock: Clock) -> None:
    """Work from before is not counted, the first token is there when it is, and the last one too."""
    model = FakeModel(clock, token_s=0.5, device_s=0.25, pending_s=100.0)
    answer, _ = timed_answer(model, 0, (1,), 3)
    assert answer.prefill_s == pytest.approx(0.5 + 0.25)
    assert sum(answer.gaps_s) == pytest.approx(2 * 0.5)
    assert answer.e2e_s == pytest.approx(3 * (0.5 + 0.25))


def test_a_round_asks_each_prompt_once_for_the_same_length(clock: Clock) -> None:
    model = FakeModel(clock)
    prompts = ((1,), (2, 3), (4, 5, 6))
    rounds = measure_rounds(Contender(model, prompts), None, 5, Effort(min_rounds=1, max_rounds=1, budget_s=1e6))
    assert [answer.prompt for answer in rounds[0].variant] == [0, 1, 2]
    assert model.asked == [(prompt, 5) for prompt in (prompts[0], *prompts)]


def test_steady_rounds_stop_at_the_fewest(clock: Clock) -> None:
    rounds = _rounds(clock, ALIKE, Effort(min_rounds=7, max_rounds=30, budget_s=1e9))
    assert [each.index for each in rounds] == list(range(7))
    assert {len(each.variant) for each in rounds} == {10}


def test_fewer_than_six_rounds_have_no_interval_and_go_on(clock: Clock) -> None:
    assert len(_rounds(clock, ALIKE, Effort(min_rounds=3, max_rounds=30, budget_s=1e9))) == 6
    assert len(_rounds(clock, ALIKE, Effort(min_rounds=3, max_rounds=5, budget_s=1e9))) == 5


def test_a_spent_budget_stops_rounds_but_not_below_the_fewest(clock: Clock) -> None:
    rounds = _rounds(clock, ALIKE, Effort(min_rounds=6, max_rounds=30, budget_s=0.0))
    assert len(rounds) == max(6, len(ALIKE))
    assert {answer.prompt for each in rounds for answer in each.variant} == set(range(len(ALIKE)))


def _unsteady(clock: Clock, factors: Sequence[float], effort: Effort) -> int:
    """Rounds of one prompt whose durations follow ``factors``; the answer before the first round tells how long it takes."""
    model = FakeModel(clock, moods=lambda number: factors[(number - 1) % len(factors)])
    return len(measure_rounds(Contender(model, ((1,),)), Contender(FakeModel(clock), ((1,),)), 4, effort))


def _expected(factors: Sequence[float], effort: Effort) -> int:
    """The stop rule once more, with scipy's binomial distribution and the standard library's median."""
    from scipy.stats import binom

    for number in range(effort.min_rounds, effort.max_rounds):
        taken = sorted(factors[:number])
        depths = [depth for depth in range(1, number // 2 + 1) if 1 - 2 * binom.cdf(depth - 1, number, 0.5) >= 0.95]
        if depths and taken[-max(depths)] - taken[max(depths) - 1] <= 2 * effort.precision * statistics.median(taken):
            return number
    return effort.max_rounds


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spread", [0.005, 0.03, 0.05, 0.3])
def test_rounds_stop_when_the_medians_interval_is_within_the_precision(seed: int, spread: float, clock: Clock) -> None:
    import numpy as np

    factors = np.random.default_rng(seed).lognormal(0.0, spread, 40).tolist()
    effort = Effort(min_rounds=6, max_rounds=40, budget_s=1e9, precision=0.02)
    assert _unsteady(clock, factors, effort) == _expected(factors, effort)


def test_some_of_these_stop_at_once_some_in_between_and_some_never() -> None:
    """So that the rule above is tried on all sides."""
    import numpy as np

    effort = Effort(min_rounds=6, max_rounds=40, precision=0.02)
    stops = {
        _expected(np.random.default_rng(seed).lognormal(0.0, spread, 40).tolist(), effort)
        for seed in range(8)
        for spread in (0.005, 0.03, 0.05, 0.3)
    }
    assert {6, 40} < stops


def test_unsteady_rounds_stop_when_the_budget_is_spent(clock: Clock) -> None:
    """One answer of one prompt token and four tokens takes 0.04 s times its factor."""
    effort = Effort(min_rounds=6, max_rounds=1000, budget_s=10.0)
    made = _unsteady(clock, [1.0, 2.0], effort)
    assert 6 < made < 1000
    assert clock.now == pytest.approx(10.0, abs=0.5)


def _seconds(rounds: Sequence[Round]) -> tuple[float, float]:
    variant = sum(answer.e2e_s for each in rounds for answer in each.variant)
    return variant, sum(answer.e2e_s for each in rounds for answer in each.anchor)


@pytest.mark.parametrize("ratio", [0.05, 0.3, 1.0, 2.0, 3.3])
def test_beside_ten_prompts_the_anchor_takes_at_most_a_quarter_of_the_time(ratio: float, clock: Clock) -> None:
    rounds = _rounds(clock, ALIKE, SIX, anchor_s=0.01 * ratio)
    variant, anchor = _seconds(rounds)
    assert 0 < anchor <= QUARTER * (variant + anchor) * (1 + 1e-9)
    assert all(each.anchor for each in rounds)


@pytest.mark.parametrize("prompts", [1, 2, 3])
@pytest.mark.parametrize("ratio", [1.0, 3.0, 10.0])
def test_beside_few_prompts_it_takes_at_most_a_quarter_beyond_its_first_answer(
    prompts: int, ratio: float, clock: Clock
) -> None:
    """One answer of the anchor there must be, or there is no ratio at all."""
    variant, anchor = _seconds(_rounds(clock, ALIKE[:prompts], Effort(min_rounds=6, max_rounds=6), anchor_s=0.01 * ratio))
    first = 0.01 * ratio * (3 + 3)
    assert first * (1 - 1e-9) <= anchor
    assert anchor - first <= QUARTER * (variant + anchor) * (1 + 1e-9)


@pytest.mark.parametrize("lengths", [(1, 200, 200, 200), (200, 1, 1, 1), (1, 50, 100)])
def test_prompts_of_uneven_length_do_not_give_the_anchor_more_than_a_quarter(lengths: Sequence[int], clock: Clock) -> None:
    """Whichever prompt comes first; the anchor is as fast as the variant."""
    prompts = [(1,) * length for length in lengths]
    variant, anchor = _seconds(_rounds(clock, prompts, Effort(min_rounds=12, max_rounds=12)))
    assert 0 < anchor <= QUARTER * (variant + anchor) * (1 + 1e-9)


def test_a_short_first_prompt_does_not_give_the_anchor_more_than_a_quarter(clock: Clock) -> None:
    """Int8 beside fp32: a third of the decoding speed, the same prefill; the first prompt tells little of the others."""
    prompts = [(1,), *[(1,) * 90] * 9]
    slow, fast = FakeModel(clock, token_s=0.03, prefill_s=0.001), FakeModel(clock, token_s=0.01, prefill_s=0.001)
    effort = Effort(min_rounds=10, max_rounds=10)
    variant, anchor = _seconds(measure_rounds(Contender(slow, prompts), Contender(fast, prompts), 4, effort))
    assert 0 < anchor <= QUARTER * (variant + anchor) * (1 + 1e-9)


def test_the_anchors_prompts_rotate_so_that_all_are_used(clock: Clock) -> None:
    rounds = _rounds(clock, ALIKE, Effort(min_rounds=20, max_rounds=20, budget_s=1e9))
    assert {answer.prompt for each in rounds for answer in each.anchor} == set(range(10))
    for each in rounds:
        prompts = [answer.prompt for answer in each.anchor]
        assert len(set(prompts)) == len(prompts)


def test_the_anchor_answers_its_own_form_of_the_prompts(clock: Clock) -> None:
    """A canary beside a large model has another vocabulary."""
    variant, anchor = FakeModel(clock), FakeModel(clock)
    effort = Effort(min_rounds=6, max_rounds=6)
    measure_rounds(Contender(variant, ((500, 600), (700, 800))), Contender(anchor, ((5, 6), (7, 8))), 3, effort)
    assert {prompt for prompt, _ in variant.asked} == {(500, 600), (700, 800)}
    assert {prompt for prompt, _ in anchor.asked} <= {(5, 6), (7, 8)}
    assert {length for _, length in (*variant.asked, *anchor.asked)} == {3}


def test_the_anchor_is_warm_before_it_is_timed(clock: Clock) -> None:
    """Its first answer takes a hundred times as long, and is in no round."""
    cold = FakeModel(clock, moods=lambda number: 100.0 if number == 0 else 1.0)
    rounds = measure_rounds(Contender(FakeModel(clock), ALIKE), Contender(cold, ALIKE), 4, Effort(min_rounds=6, max_rounds=6))
    variant, anchor = _seconds(rounds)
    assert 0 < anchor <= QUARTER * (variant + anchor)


def test_garbage_is_collected_outside_the_rounds_only(clock: Clock) -> None:
    seen: list[bool] = []

    def look(_: int) -> float:
        seen.append(gc.isenabled())
        return 1.0

    model = FakeModel(clock, moods=look)
    measure_rounds(Contender(model, ALIKE), Contender(FakeModel(clock), ALIKE), 4, SIX)
    assert not any(seen[-60:])
    assert gc.isenabled()


def test_garbage_is_collected_again_after_a_failure(clock: Clock) -> None:
    def fails_later(number: int) -> float:
        if number == 15:
            raise RuntimeError("device lost")
        return 1.0

    model = FakeModel(clock, moods=fails_later)
    with pytest.raises(RuntimeError, match="device lost"):
        measure_rounds(Contender(model, ALIKE), Contender(FakeModel(clock), ALIKE), 4, Effort())
    assert gc.isenabled()


@pytest.mark.parametrize(("budget_s", "size"), [(1e9, 10), (3.84, 5), (1.2, 2), (0.3, 1), (0.0, 1)])
def test_where_all_prompts_would_take_too_long_they_take_turns(clock: Clock, budget_s: float, size: int) -> None:
    """An answer takes 0.06 s here; six rounds of ``size`` answers and the anchor's quarter fit the budget."""
    rounds = _rounds(clock, ALIKE, Effort(min_rounds=6, max_rounds=30, budget_s=budget_s))
    assert {len(each.variant) for each in rounds} == {size}
    asked = [answer.prompt for each in rounds for answer in each.variant]
    assert set(asked) == set(range(10))
    assert len({asked.count(prompt) for prompt in range(10)}) == 1
    for each in rounds:
        assert {answer.prompt for answer in each.anchor} <= {answer.prompt for answer in each.variant}


# --- several sequences together


@dataclass
class FakeBatch(FakeModel):
    """Answers any number of sequences in the time of one."""

    rows: list[list[list[int]]] = field(default_factory=list)

    def generate_batch(self, prompts: Sequence[Sequence[int]], limit: int) -> Iterator[Sequence[int]]:
        self.rows.append([list(prompt) for prompt in prompts])
        return ([token, *[-1] * (len(prompts) - 1)] for token in self.generate(prompts[0], limit))


@given(ids=st.lists(st.integers(0, 99), min_size=1, max_size=12), batch=st.integers(1, 30))
def test_the_rows_of_a_batch_are_the_prompt_turned_around(ids: list[int], batch: int) -> None:
    rows = together(ids, batch)
    assert len(rows) == batch
    assert rows[0] == ids
    assert all(row[0] == ids[0] and sorted(row) == sorted(ids) for row in rows)


def test_rows_differ_as_far_as_the_prompt_is_long() -> None:
    assert len({tuple(row) for row in together(range(9), 8)}) == 8


def test_a_batch_counts_the_tokens_of_all_and_the_time_once(clock: Clock) -> None:
    model = FakeBatch(clock, token_s=0.01, prefill_s=0.1)
    single, ids = timed_answer(model, 3, (7, 8, 9), 5)
    batch, first = timed_answer(model, 3, (7, 8, 9), 5, 4)
    assert model.rows == [together((7, 8, 9), 4)]
    assert first == ids
    assert batch.gaps_s == pytest.approx(single.gaps_s)
    assert (batch.prefill_s, batch.e2e_s) == pytest.approx((single.prefill_s, single.e2e_s))
    assert (single.prompt_tokens, single.tokens, single.first_tokens, single.batch) == (3, 5, 1, 1)
    assert (batch.prompt_tokens, batch.tokens, batch.first_tokens, batch.batch) == (12, 20, 4, 4)


def test_what_is_done_after_each_round_is_done_while_no_clock_runs(clock: Clock) -> None:
    def wait() -> None:
        clock.now += 1000.0

    seen = _rounds(clock, ALIKE, SIX), measure_rounds(
        Contender(FakeModel(clock), ALIKE), Contender(FakeModel(clock), ALIKE), 4, SIX, after_round=wait
    )  # fmt: skip
    slow = [sum(each.e2e_s for each in round_.variant) for round_ in seen[1]]
    assert slow == pytest.approx([sum(each.e2e_s for each in round_.variant) for round_ in seen[0]])


def test_rounds_spoilt_by_other_work_end_with_the_budget(clock: Clock) -> None:
    """Six rounds were asked for; at 0.4 s an answer the first is over the budget, and stays."""
    model = Contender(FakeModel(clock, token_s=0.1), ((1,), (2,)))
    asked = Effort(min_rounds=6, max_rounds=30, budget_s=0.3)
    quiet, spoilt = (measure_rounds(model, None, 4, asked, spoilt=lambda said=said: said) for said in (False, True))

    assert (len(quiet), len(spoilt)) == (6, 1)
