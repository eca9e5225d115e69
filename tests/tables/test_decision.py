"""The pick: Pareto front, limits, ties, and what speeds beside other work leave undecided."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.advice.decision import decide
from quantbench.advice.headline import headline, others
from quantbench.advice.pareto import PROCESS_SPREAD, Candidate, choose, dominates, possible

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    import pandas as pd

    from quantbench.core.record import Missing, Record

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]

SMALL = st.integers(1, 5).map(float)


def variant(name: str, size: float, kld: float, tps: float, half: float | None = 0.6, **other: Any) -> Candidate:
    """A candidate whose interval reaches ``half`` to both sides; None is no interval."""
    ends = (None, None) if half is None else (tps - half, tps + half)
    return Candidate(
        name=name, weight_bytes=size, need_bytes=size, bits_per_weight=None, tps=tps, tps_low=ends[0], tps_high=ends[1],
        kld=kld, kld_low=None, kld_high=None, **other,
    )  # fmt: skip


@st.composite
def candidates(draw: st.DrawFn, *, quiet: bool = True) -> list[Candidate]:
    """Few distinct figures, so that equal ones and dominated ones are common."""
    return [
        variant(
            f"v{index}", draw(SMALL), draw(SMALL), draw(SMALL), draw(st.sampled_from([None, 0.1, 0.6, 2.0])),
            processes=draw(st.sampled_from([1, 3])), disturbed=not quiet and draw(st.booleans()),
        )
        for index in range(draw(st.integers(0, 7)))
    ]  # fmt: skip


def beside_work(frame: pd.DataFrame, precision: str, repeat: int | None = None) -> pd.DataFrame:
    """The rows with one variant marked as measured beside other work, or one process of it."""
    marked = frame["precision"] == precision
    return frame.assign(disturbed=marked if repeat is None else marked & (frame["repeat"] == repeat))


def unmeasured(each: Candidate) -> Candidate:
    return replace(each, tps_low=None, tps_high=None)


@given(candidates())
def test_the_pick_is_never_dominated(group: list[Candidate]) -> None:
    """By nothing that is no larger, no further from the reference, and not distinguishably slower."""
    pick = choose(group)
    assert (pick is None) == (not group)
    for other in group:
        if pick and other.weight_bytes <= pick.weight_bytes and other.kld <= pick.kld and not pick.surely_faster(other):
            assert (other.weight_bytes, other.kld) == (pick.weight_bytes, pick.kld)
            assert not other.surely_faster(pick)


@given(candidates(quiet=False), st.randoms())
def test_the_order_of_rows_does_not_matter(group: list[Candidate], random: Random) -> None:
    mixed = random.sample(group, len(group))
    assert choose(mixed) == choose(group)
    assert {each.name for each in possible(mixed)} == {each.name for each in possible(group)}


@given(candidates(), st.data())
def test_an_interval_that_is_missing_never_makes_a_larger_variant_win(group: list[Candidate], data: st.DataObject) -> None:
    """Nothing wins that is larger than one of those that were as fast as any while all intervals were there."""
    less = [unmeasured(each) if data.draw(st.booleans()) else each for each in group]
    level = [each for each in group if not any(other.surely_faster(each) for other in group)]
    pick = choose(less)
    assert pick is None or pick.weight_bytes <= min(each.weight_bytes for each in level)


@given(candidates())
def test_without_any_interval_the_smallest_wins_then_the_lowest_kld(group: list[Candidate]) -> None:
    pick = choose([unmeasured(each) for each in group])
    assert pick is None or (pick.weight_bytes, pick.kld) == min((each.weight_bytes, each.kld) for each in group)


@given(candidates())
def test_faster_is_a_strict_order_and_dominance_has_no_cycle(group: list[Candidate]) -> None:
    for one in group:
        assert not one.surely_faster(one)
        assert not dominates(one, one)
        for other in group:
            assert not (dominates(one, other) and dominates(other, one))
            for third in group:
                if one.surely_faster(other) and other.surely_faster(third):
                    assert one.surely_faster(third)
                assert not (dominates(one, other) and dominates(other, third) and dominates(third, one))


@given(candidates(quiet=False), st.data())
def test_a_pick_beside_other_work_is_the_pick_whatever_the_disturbed_speeds_were(
    group: list[Candidate], data: st.DataObject
) -> None:
    """One that is told stays, when what was disturbed turns out to be of any speed; but for what it beats in size and KLD."""
    found = possible(group)
    assert bool(found) == bool(group)
    if len(found) == 1:
        (told,) = found
        true = [
            replace(each, tps_low=(speed := data.draw(st.floats(0.01, 20))), tps_high=speed, disturbed=False)
            if each.disturbed
            else each
            for each in group
            if each is told
            or not (each.weight_bytes >= told.weight_bytes and each.kld >= told.kld and (told.disturbed or each.disturbed))
        ]
        pick = choose(true)
        assert pick
        assert (pick.weight_bytes, pick.kld) == (told.weight_bytes, told.kld)


def test_a_missing_interval_ships_nothing_of_twice_the_size() -> None:
    """What was seen: three scenarios measured four minutes apart, fp32 just above bf16, and one of them without an interval."""
    whole, half = variant("torch/fp32", 4.0, 0.0, 102.0, 1.0), variant("torch/bf16", 2.0, 1e-4, 100.0, 1.0)
    for group in ([whole, half], [unmeasured(whole), half], [whole, unmeasured(half)], [unmeasured(whole), unmeasured(half)]):
        pick = choose(group)
        assert pick
        assert pick.name == "torch/bf16"
    assert choose([replace(whole, tps=150.0, tps_low=149.0, tps_high=151.0), half]) != half


def test_a_tie_within_the_intervals_and_what_processes_differ_goes_to_fewer_bytes() -> None:
    small, large = variant("small", 1.0, 0.05, 100.0, 1.0), variant("large", 2.0, 0.01, 103.0, 1.0)
    assert choose([small, large]) == small
    beyond = 100.0 * (1 + PROCESS_SPREAD) + 3
    assert choose([small, variant("large", 2.0, 0.01, beyond, 1.0)]) != small
    several = [replace(each, processes=3) for each in (small, large)]
    assert choose(several) == several[1]
    assert choose([small, variant("near", 1.0, 0.01, 100.0, 1.0)]) != small


@pytest.mark.parametrize(
    ("limits", "pick"),
    [
        ({"max_kld": 0.6}, "gguf/q2_k"),
        ({"max_kld": 0.02}, "gguf/q5_k_m"),
        ({"max_kld": 0.0}, "torch/fp32"),
        ({"max_kld": 0.6, "memory_bytes": 500_000}, "gguf/q2_k"),
        ({"min_tps": 650.0}, "gguf/q4_k_m"),
        ({"min_tps": 700.0}, None),
        ({"memory_bytes": 1}, None),
    ],
)
def test_limits(write: Write, full: list[Record], limits: dict[str, float], pick: str | None) -> None:
    [choice] = decide(write(full), **limits)  # type: ignore[arg-type]

    assert (choice.pick.name if choice.pick else None) == pick


def test_weights_that_grow_while_running_count_as_they_run(write: Write, record: Make) -> None:
    frame = write([record("bitsandbytes/nf4-dq", weight_bytes=1000, weight_bytes_running=3000, kld_mean=0.01)])
    [fits], [fails] = decide(frame, memory_bytes=3000), decide(frame, memory_bytes=2000)

    assert fits.pick
    assert "1 kB, 3 kB running" in headline(fits)
    assert "nearest is bitsandbytes/nf4-dq, needs more than 2 kB" in headline(fails)


def test_the_control_is_no_candidate(write: Write, record: Make) -> None:
    [choice] = decide(write([record("torch/fp32", control=True)]))

    assert choice.pick is None
    assert not others(choice)


def test_what_failed_or_lacks_a_figure_is_named(write: Write, record: Make, missing: Callable[[str], Missing]) -> None:
    frame = write(
        [
            record("gguf/q8_0"),
            record("gguf/q6_k", status="crashed", reason="signal 11"),
            record("gguf/q5_k_m", kld_mean=missing("none"), decode_tps=missing("none")),
            record(
                "gguf/q4_k_m",
                decode_tps_low=missing("few"),
                decode_tps_high=missing("few"),
                kld_mean_low=missing("one"),
                kld_mean_high=missing("one"),
            ),
        ]
    )
    [choice] = decide(frame)

    assert choice.pick
    assert choice.pick.name == "gguf/q4_k_m"
    reasons = {other.name: other.reason for other in others(choice)}
    assert reasons["gguf/q6_k"] == "crashed"
    assert reasons["gguf/q5_k_m"] == "no decode speed and KLD measured"


def test_one_choice_per_model_and_prompt_set(write: Write, record: Make) -> None:
    pairs = [(model, prompts) for model in ("a/b", "canary") for prompts in ("ten", "two")]
    choices = decide(write([record(model=model, prompts=prompts) for model, prompts in pairs], instrument_check=False))

    assert sorted((choice.model, choice.prompts) for choice in choices) == pairs


def test_a_pick_that_depends_on_a_speed_beside_other_work_is_not_told(write: Write, full: list[Record]) -> None:
    """fp32 at a twentieth of its speed, with a tight interval; all else was quiet."""
    slowed = {"decode_tps": 5.0, "decode_tps_low": 4.9, "decode_tps_high": 5.1}
    records = [replace(each, values={**each.values, **slowed}) if each.scenario.is_reference else each for each in full]
    [choice] = decide(beside_work(write(records), "fp32"))

    assert choice.pick is None
    assert {each.name for each in choice.undecided} == {"gguf/q4_k_m", "torch/fp32"}
    assert headline(choice) == (
        "Cannot tell torch/fp32 from gguf/q4_k_m, measured beside other work: run again on a quiet machine"
    )
    assert choice.disturbed == ("torch/fp32",)
    assert choice.runner_up is None
    assert not any("slower than torch/fp32" in each.reason for each in choice.rejected)


def test_what_is_larger_and_further_away_may_be_disturbed(write: Write, record: Make) -> None:
    records = [record("gguf/q4_k_m"), record("bitsandbytes/int8", kld_mean=0.05)]
    [choice] = decide(beside_work(write(records), "int8"))

    assert choice.pick
    assert choice.pick.name == "gguf/q4_k_m"
    assert choice.runner_up
    assert (choice.runner_up.name, choice.runner_up.reason) == ("bitsandbytes/int8", "dominated by gguf/q4_k_m")


def test_a_least_speed_is_not_judged_beside_other_work(write: Write, record: Make) -> None:
    [choice] = decide(beside_work(write([record("gguf/q4_k_m")]), "q4_k_m"), min_tps=700.0)

    assert choice.pick is None
    assert [each.name for each in choice.undecided] == ["gguf/q4_k_m"]


def test_one_disturbed_process_of_several_disturbs_their_median(write: Write, record: Make) -> None:
    records = [record("gguf/q4_k_m", repeat=repeat) for repeat in range(3)]
    [choice] = decide(beside_work(write([*records, record("torch/fp32")]), "q4_k_m", repeat=1))

    assert choice.disturbed == ("gguf/q4_k_m (median of 3)",)


def test_a_tie_without_an_interval_says_whose(write: Write, record: Make, missing: Callable[[str], Missing]) -> None:
    bare = {"decode_tps_low": missing("few"), "decode_tps_high": missing("few")}
    [choice] = decide(write([record("torch/fp32", decode_tps=900.0, **bare), record("gguf/q4_k_m")]))

    assert choice.pick
    assert choice.pick.name == "gguf/q4_k_m"
    assert choice.runner_up
    assert choice.runner_up.reason == "larger, and not known to be faster: torch/fp32 has no interval of its speed"
    assert not choice.runner_up.tied


def test_a_single_row_is_shipped_without_a_runner_up(write: Write, record: Make) -> None:
    [choice] = decide(write([record()]))

    assert choice.runner_up is None
