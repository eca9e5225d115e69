"""Latency columns against numpy and scipy on known answers; ratios cancel what the machine does to both."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.record import Missing
from quantbench.core.trace import Generation, Round, Trace
from quantbench.metrics.latency import decode_tps, latency, output_tps, prefill_tps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

times = st.floats(1e-4, 10)
answers = st.builds(
    lambda prompt_tokens, prefill_s, gaps_s: Generation(
        prompt=0, prompt_tokens=prompt_tokens, prefill_s=prefill_s, gaps_s=gaps_s, e2e_s=prefill_s + sum(gaps_s)
    ),
    st.integers(1, 500),
    times,
    st.lists(times, min_size=1, max_size=6).map(tuple),
)


def _scaled(answer: Generation, factor: float) -> Generation:
    gaps = tuple(gap * factor for gap in answer.gaps_s)
    return replace(answer, prefill_s=answer.prefill_s * factor, gaps_s=gaps, e2e_s=answer.e2e_s * factor)


def _matched(trace: Trace) -> Trace:
    """The same trace with an anchor that is exactly twice as slow as the variant, on one prompt a round."""
    rounds = tuple(replace(each, anchor=(_scaled(each.variant[each.index % 3], 2.0),)) for each in trace.rounds)
    return replace(trace, rounds=rounds)


def _batched(trace: Trace, batch: int) -> Trace:
    """The same times for ``batch`` sequences together, of as many tokens each."""

    def more(answer: Generation) -> Generation:
        return Generation(
            prompt=answer.prompt, prompt_tokens=(answer.prompt_tokens or 0) * batch, prefill_s=answer.prefill_s,
            gaps_s=answer.gaps_s, e2e_s=answer.e2e_s, batch=batch,
        )  # fmt: skip

    rounds = tuple(replace(each, variant=tuple(map(more, each.variant)), anchor=()) for each in trace.rounds)
    return replace(trace, rounds=rounds)


def test_a_batch_in_the_same_time_has_so_many_times_the_throughput_and_the_same_latency(trace: Trace) -> None:
    single, eight = latency.compute(_batched(trace, 1), None), latency.compute(_batched(trace, 8), None)
    for name in ("ttft_s", "tpot_s", "tpot_p90_s", "e2e_s"):
        assert eight[name] == pytest.approx(single[name])
    for name in ("prefill_tps", "decode_tps", "tps"):
        assert eight[name] == pytest.approx(8 * single[name])


@pytest.mark.parametrize(
    ("name", "take"),
    [
        ("prefill_s", lambda answer: answer.prefill_s),
        ("ttft_s", lambda answer: answer.prefill_s),
        ("tpot_s", lambda answer: (answer.e2e_s - answer.prefill_s) / len(answer.gaps_s)),
        ("e2e_s", lambda answer: answer.e2e_s),
    ],
)
def test_times_are_median_mad_and_p90_over_all_answers(name: str, take: Callable[[Generation], float], trace: Trace) -> None:
    import numpy as np
    from scipy.stats import median_abs_deviation

    taken = [take(answer) for each in trace.rounds for answer in each.variant]
    values = latency.compute(trace, None)
    stem = name.removesuffix("_s")
    assert values[name] == pytest.approx(float(np.median(taken)))
    assert values[f"{stem}_mad_s"] == pytest.approx(1.4826 * float(median_abs_deviation(taken)))
    assert values[f"{stem}_p90_s"] == pytest.approx(float(np.quantile(taken, 0.9)))


def test_tpot_is_end_to_end_less_first_token_over_the_rest(trace: Trace) -> None:
    """By its definition it holds the wait for the device after the last token, as e2e does."""
    waited = tuple(
        replace(each, variant=tuple(replace(answer, e2e_s=answer.e2e_s + 0.003) for answer in each.variant))
        for each in trace.rounds
    )
    values = latency.compute(replace(trace, rounds=waited), None)
    before = latency.compute(trace, None)
    assert values["e2e_s"] == pytest.approx(before["e2e_s"] + 0.003)
    assert values["tpot_s"] == pytest.approx(before["tpot_s"] + 0.003 / 3)


@pytest.mark.parametrize(
    ("name", "tokens", "seconds"),
    [
        ("prefill_tps", lambda answer: answer.prompt_tokens, lambda answer: answer.prefill_s),
        ("decode_tps", lambda answer: len(answer.gaps_s), lambda answer: sum(answer.gaps_s)),
        ("tps", lambda answer: len(answer.gaps_s) + 1, lambda answer: answer.e2e_s),
    ],
)
def test_throughput_is_tokens_over_time_of_a_round_and_its_median(
    name: str, tokens: Callable[[Generation], float], seconds: Callable[[Generation], float], trace: Trace
) -> None:
    rates = sorted(sum(map(tokens, each.variant)) / sum(map(seconds, each.variant)) for each in trace.rounds)
    values = latency.compute(trace, None)
    assert values[name] == pytest.approx((rates[2] + rates[3]) / 2)
    assert (values[f"{name}_low"], values[f"{name}_high"]) == (pytest.approx(rates[0]), pytest.approx(rates[5]))


@given(st.lists(answers, min_size=1, max_size=5))
def test_the_rate_of_a_round_lies_between_those_of_its_answers(round_: Sequence[Generation]) -> None:
    for rate in (prefill_tps, decode_tps, output_tps):
        single = [rate([answer]) for answer in round_]
        assert min(single) * (1 - 1e-9) <= rate(round_) <= max(single) * (1 + 1e-9)


def test_the_ratio_compares_the_prompts_that_the_anchor_answered(trace: Trace) -> None:
    """Prompts differ in length; over all of them the ratio would not be 2."""
    values = latency.compute(_matched(trace), None)
    for name in ("prefill_ratio", "decode_ratio"):
        assert values[name] == pytest.approx(2.0)
        assert values[f"{name}_low"] == pytest.approx(2.0)
        assert values[f"{name}_high"] == pytest.approx(2.0)


@given(st.lists(st.floats(0.2, 5), min_size=6, max_size=6))
def test_what_slows_both_alike_leaves_the_ratio(moods: list[float]) -> None:
    answer = Generation(prompt=0, prompt_tokens=5, prefill_s=0.01, gaps_s=(0.002, 0.003), e2e_s=0.015)
    rounds = tuple(
        Round(index=index, variant=(_scaled(answer, mood),), anchor=(_scaled(answer, 1.5 * mood),))
        for index, mood in enumerate(moods)
    )
    trace = Trace.__new__(Trace)
    object.__setattr__(trace, "rounds", rounds)
    values = latency.compute(trace, None)
    assert values["decode_ratio"] == pytest.approx(1.5)
    assert values["prefill_ratio"] == pytest.approx(1.5)


def test_rounds_without_the_anchor_are_left_out_of_the_ratio_only(trace: Trace) -> None:
    """A slow anchor answers in every few rounds."""
    sparse = replace(
        trace,
        rounds=tuple(each if each.index % 2 == 0 else replace(each, anchor=()) for each in _matched(trace).rounds),
    )
    values = latency.compute(sparse, None)
    assert values["rounds"] == 6
    assert values["decode_ratio"] == pytest.approx(2.0)
    assert values["decode_ratio_low"] == Missing("3 rounds are too few for a 95 % interval of the median, which needs 6")
    assert not isinstance(values["decode_tps_low"], Missing)


def test_few_rounds_have_figures_without_intervals_and_say_why(trace: Trace) -> None:
    values = latency.compute(replace(trace, rounds=trace.rounds[:5]), None)
    missing = {name for name, value in values.items() if isinstance(value, Missing) and "p99" not in name}
    assert missing == {
        f"{name}_{end}"
        for name in ("prefill_tps", "decode_tps", "tps", "prefill_ratio", "decode_ratio")
        for end in ("low", "high")
    }
    assert {values[name].reason for name in missing} == {  # type: ignore[union-attr]
        "5 rounds are too few for a 95 % interval of the median, which needs 6"
    }


def test_every_column_is_filled(trace: Trace) -> None:
    assert set(latency.compute(trace, None)) == {column.name for column in latency.columns}


def test_a_p99_takes_a_thousand_answers(trace: Trace) -> None:
    answers = len(trace.rounds[0].variant)
    rounds = tuple(replace(trace.rounds[0], index=index) for index in range(-(-1000 // answers)))
    few, many = latency.compute(trace, None), latency.compute(replace(trace, rounds=rounds), None)
    assert few["e2e_p99_s"] == Missing("a p99 needs 1000 answers")
    assert many["e2e_p99_s"] == pytest.approx(np.quantile([each.e2e_s for each in rounds[0].variant] * len(rounds), 0.99))


def test_without_an_anchor_only_the_ratios_are_missing(trace: Trace) -> None:
    values = latency.compute(replace(trace, rounds=tuple(replace(each, anchor=()) for each in trace.rounds)), None)
    missing = {name for name, value in values.items() if isinstance(value, Missing) and "p99" not in name}
    assert missing == {name for name in values if "ratio" in name or "anchor" in name}
