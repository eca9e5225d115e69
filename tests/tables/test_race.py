"""Who is out after a first round: nobody whom the rule could pick, and nobody without whom it would pick another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantbench.advice.decision import Limits
from quantbench.advice.pareto import Candidate, choose
from quantbench.advice.race import KLD_SCALE, of_any_process, out, too_much

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMITS = Limits(memory_bytes=None, max_kld=0.05, min_tps=None)


def ends(draw: st.DrawFn, least: int, most: int) -> tuple[int, int]:
    low, high = sorted((draw(st.integers(least, most)), draw(st.integers(least, most))))
    return low, high


def inside(draw: st.DrawFn, low: float, high: float) -> float:
    return draw(st.sampled_from([low, (low + high) / 2, high]))


@st.composite
def contests(draw: st.DrawFn) -> tuple[list[Candidate], list[Candidate], Limits]:
    """First figures, final ones that lie inside them but for one factor of all KLDs, and limits; few distinct figures."""
    scale = draw(st.sampled_from([1 / KLD_SCALE, 1.0, KLD_SCALE]))
    first, final = [], []
    for index in range(draw(st.integers(1, 6))):
        bytes_, speeds, far = draw(st.integers(1, 4)), ends(draw, 6, 16), ends(draw, 0, 9)
        disturbed, unknown = draw(st.booleans()) and draw(st.booleans()), draw(st.integers(0, 5)) == 0
        begun = Candidate(
            name=f"v{index}", weight_bytes=bytes_, need_bytes=bytes_, bits_per_weight=None, tps=inside(draw, *speeds),
            tps_low=speeds[0], tps_high=speeds[1], kld=inside(draw, *far), disturbed=disturbed,
            kld_low=None if unknown else far[0], kld_high=None if unknown else far[1],
        )  # fmt: skip
        later = ends(draw, 6, 16) if disturbed else ends(draw, *speeds)
        closer = scale * (draw(st.integers(0, 20)) if unknown else inside(draw, *far))
        ended = replace(
            begun, tps=inside(draw, *later), tps_low=later[0], tps_high=later[1], kld=closer, kld_low=None, kld_high=None,
            disturbed=False,
        )  # fmt: skip
        first.append(begun)
        final.append(ended)
    limits = Limits(
        memory_bytes=draw(st.sampled_from([None, 3])), max_kld=draw(st.sampled_from([2.0, 6.0, 20.0])),
        min_tps=draw(st.sampled_from([None, 9.0])),
    )  # fmt: skip
    return first, final, limits


def picked(candidates: Sequence[Candidate], limits: Limits) -> str:
    pick = choose([each for each in candidates if not limits.broken(each)])
    return pick.name if pick else ""


@given(contests())
@settings(max_examples=600)
def test_the_pick_is_the_same_without_those_who_are_out(contest: tuple[list[Candidate], list[Candidate], Limits]) -> None:
    first, final, limits = contest
    gone = out(first, limits)
    assert picked([each for each in final if each.name not in gone], limits) == picked(final, limits)


def one(name: str, size: float, kld: tuple[float, float], tps: tuple[float, float], **other: Any) -> Candidate:
    return Candidate(
        name=name, weight_bytes=size, need_bytes=size, bits_per_weight=None, tps=sum(tps) / 2, tps_low=tps[0], tps_high=tps[1],
        kld=sum(kld) / 2, kld_low=kld[0], kld_high=kld[1], **other,
    )  # fmt: skip


SMALL = one("small", 2, (0.02, 0.03), (100, 110))


def test_the_process_of_a_later_round_may_be_faster_or_slower_by_what_processes_differ_by() -> None:
    likely = of_any_process(one("likely", 1, (0.02, 0.03), (110, 121)))
    assert (likely.tps_low, likely.tps_high) == pytest.approx((100, 133.1))
    away = one("away", 3, (0.03, 0.033), (95, 96))
    assert set(out([SMALL, away], LIMITS)) == {"away"}
    assert out([of_any_process(each) for each in (SMALL, away)], LIMITS) == {}
    unknown = replace(away, disturbed=True)
    assert of_any_process(unknown) == unknown


def test_what_surely_breaks_a_limit_is_out() -> None:
    far, near = one("far", 1, (0.08, 0.10), (100, 110)), one("near", 1, (0.07, 0.10), (100, 110))
    assert too_much(far, LIMITS) == "KLD surely above 0.05"
    assert out([far, near, SMALL], LIMITS) == {"far": "KLD surely above 0.05"}  # of 1.5 times that limit
    slow, slower = one("slow", 2, (0.02, 0.03), (17, 19)), one("slower", 2, (0.02, 0.03), (17, 18))
    assert out([slow, slower], replace(LIMITS, min_tps=20)) == {"slower": "surely slower than 20 tokens/s"}
    assert out([SMALL], replace(LIMITS, memory_bytes=1)) == {"small": "needs more than 1 B"}


def test_a_larger_slower_closer_one_is_out() -> None:
    large = one("large", 8, (0.0, 0.001), (50, 60))
    assert out([SMALL, large], LIMITS) == {"large": "surely slower than small"}
    assert out([SMALL, replace(large, disturbed=True)], LIMITS) == {}
    assert out([SMALL, replace(large, tps_low=None)], LIMITS) == {}
    assert out([replace(SMALL, kld_high=0.04), large], LIMITS) == {}  # the faster one may be too far away


def test_a_slower_one_that_may_be_picked_in_place_of_a_larger_one_stays() -> None:
    """The rule begins with ``large``, of those none is surely faster than, and ends with what dominates it."""
    quick = one("quick", 9, (0.02, 0.03), (100, 110))
    large, slower = one("large", 8, (0.02, 0.025), (80, 95)), one("slower", 7, (0.01, 0.015), (80, 85))
    assert quick.surely_faster(slower)
    assert choose([quick, large, slower]) == slower
    assert out([quick, large, slower], LIMITS) == {}
    away = one("away", 7, (0.03, 0.033), (80, 85))
    why = "surely slower than quick"
    assert out([quick, large, away], LIMITS) == {"away": why}
    assert out([quick, slower], LIMITS) == {"slower": why}  # nothing replaces what is surely faster than itself


def test_what_is_no_better_in_anything_is_out_without_the_spread_of_processes() -> None:
    worse = one("worse", 3, (0.03, 0.04), (95, 100))
    assert not SMALL.surely_faster(worse)
    assert out([SMALL, worse], LIMITS) == {"worse": "surely no better than small in size, KLD or speed"}
    assert out([SMALL, replace(SMALL, name="twin")], LIMITS) == {}


def test_what_is_larger_than_one_as_fast_as_any_is_out_but_where_it_alone_would_put_out_a_smaller_one() -> None:
    large, tiny = one("large", 8, (0.0, 0.001), (98, 105)), one("tiny", 1, (0.03, 0.04), (93, 99))
    why = {"large": "larger than small, and surely not faster"}
    assert out([SMALL, large], LIMITS) == why
    assert out([SMALL, large, one("tiny", 1, (0.03, 0.04), (96, 99))], LIMITS) == why
    assert out([SMALL, large, tiny], LIMITS) == {}  # which may put out ``tiny``, as ``small`` may not
    assert out([SMALL, large, replace(tiny, tps_low=80, tps_high=85)], LIMITS) == {**why, "tiny": "surely slower than small"}
    assert out([SMALL, replace(large, disturbed=True)], LIMITS) == {}
    assert out([SMALL, replace(large, tps_high=120)], LIMITS) == {}  # it may turn out surely faster


@pytest.mark.parametrize("limits", [LIMITS, replace(LIMITS, min_tps=1e9), replace(LIMITS, memory_bytes=1)])
def test_nobody_is_out_on_bare_means(limits: Limits) -> None:
    bare = replace(one("bare", 1, (9, 9), (1, 1)), kld_low=None, kld_high=None, tps_low=None, tps_high=None)
    assert out([bare, SMALL], replace(limits, memory_bytes=None)).get("bare") is None
