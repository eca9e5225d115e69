"""The pick: Pareto front, limits, ties, and the sentence that says it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.tables._pareto import Candidate, choose, dominates, front
from quantbench.tables.decision import decide

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from quantbench.record import Missing, Record

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]

SMALL = st.integers(1, 5).map(float)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    """Few distinct figures, so that equal ones and dominated ones are common."""
    count = draw(st.integers(0, 8))
    return [
        Candidate(
            name=f"v{index}", weight_bytes=(size := draw(SMALL)), need_bytes=size, bits_per_weight=None,
            tps=(tps := draw(SMALL)), tps_low=draw(st.none() | st.just(tps - 0.6)),
            tps_high=draw(st.none() | st.just(tps + 0.6)), kld=draw(SMALL), kld_low=None, kld_high=None,
        )
        for index in range(count)
    ]  # fmt: skip


@given(candidates())
def test_the_front_is_what_brute_force_finds(group: list[Candidate]) -> None:
    def beaten(one: Candidate) -> bool:
        mine = (one.weight_bytes, -one.tps, one.kld)
        others = [(each.weight_bytes, -each.tps, each.kld) for each in group]
        return any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in others)

    assert front(group) == [each for each in group if not beaten(each)]


@given(candidates())
def test_the_pick_is_on_the_front_and_none_is_surely_faster(group: list[Candidate]) -> None:
    pick = choose(group)

    assert (pick is None) == (not group)
    if pick:
        best = front(group)
        fastest = max(each.tps for each in best)
        assert pick in best
        assert any(pick.tps_overlaps(each) for each in best if each.tps == fastest)
        assert all(pick.kld <= each.kld for each in best if each.tps == fastest)


@given(candidates())
def test_dominance_is_a_strict_order(group: list[Candidate]) -> None:
    for one in group:
        assert not dominates(one, one)
        for other in group:
            assert not (dominates(one, other) and dominates(other, one))


def test_a_tie_within_the_intervals_goes_to_the_lower_kld() -> None:
    fast = Candidate(
        name="fast", weight_bytes=1, need_bytes=1, bits_per_weight=None, tps=100, tps_low=90, tps_high=110,
        kld=0.05, kld_low=None, kld_high=None,
    )  # fmt: skip
    close = replace(fast, name="close", weight_bytes=2, tps=95, tps_low=88, tps_high=99, kld=0.01)

    assert choose([fast, close]) == close
    assert choose([fast, replace(close, tps_high=89)]) == fast
    assert choose([fast, replace(close, tps_low=None, tps_high=None)]) == replace(close, tps_low=None, tps_high=None)


def test_the_sentence_says_pick_figures_runner_up_and_why_not(write: Write, full: list[Record]) -> None:
    [choice] = decide(write(full), memory_bytes=24 * 2**30)

    assert choice.sentence == (
        "Under 24 GiB ship gguf/q4_k_m on canary (prompts ten): "
        "612 kB weights (4.90 bits/weight), decode 653 tokens/s (643 to 663), "
        "KLD 0.042 nats (0.04 to 0.044); runner-up gguf/q5_k_m, slower than gguf/q4_k_m: "
        "712 kB weights (5.70 bits/weight), decode 561 tokens/s (553 to 570), KLD 0.013 nats (0.012 to 0.013); "
        "KV cache and activations come on top of the weights; "
        "not bitsandbytes/nf4-dq, gguf/q3_k_m, gguf/q2_k: KLD above 0.056; "
        "not torch/fp32, gguf/f16, gguf/q8_0, gguf/q6_k: slower than gguf/q4_k_m; "
        "not bitsandbytes/int8: dominated by gguf/q8_0; "
        "not torch/bf16, torch/fp16: dominated by gguf/f16; canary is an instrument check, so this holds for canary only"
    )


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
    assert "1 kB weights (6.40 bits/weight), 3 kB running" in fits.sentence
    assert "nearest is bitsandbytes/nf4-dq, needs more than 2 kB" in fails.sentence


def test_without_a_pick_the_nearest_is_named_with_its_limit(write: Write, full: list[Record]) -> None:
    [choice] = decide(write(full), memory_bytes=600_000)

    assert choice.pick is None
    assert choice.sentence.startswith(
        "Ship none of the variants measured on canary (prompts ten): none keeps KLD up to 0.056, weights within 600 kB; "
        "nearest is gguf/q4_k_m, needs more than 600 kB: 612 kB weights"
    )


def test_the_control_is_no_candidate(write: Write, record: Make) -> None:
    [choice] = decide(write([record("torch/fp32", control=True)]))

    assert choice.sentence == (
        "Ship none of the variants measured on canary (prompts ten): none has all the figures that a pick takes"
    )


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
    assert "ship gguf/q4_k_m" in choice.sentence.lower()
    assert "decode 653 tokens/s, KLD 0.042 nats;" in choice.sentence
    assert "not gguf/q6_k: crashed" in choice.sentence
    assert "not gguf/q5_k_m: no decode speed and KLD measured" in choice.sentence


def test_one_choice_per_model_and_prompt_set(write: Write, record: Make) -> None:
    pairs = [(model, prompts) for model in ("a/b", "canary") for prompts in ("ten", "two")]
    choices = decide(write([record(model=model, prompts=prompts) for model, prompts in pairs], instrument_check=False))

    assert sorted((choice.model, choice.prompts) for choice in choices) == pairs
    assert not any("instrument" in choice.sentence for choice in choices)


def test_a_single_row_is_shipped_without_a_runner_up(write: Write, record: Make) -> None:
    [choice] = decide(write([record()]))

    assert choice.runner_up is None
    assert "runner-up" not in choice.sentence
