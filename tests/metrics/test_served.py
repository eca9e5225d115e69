"""Columns of served models against figures worked out by hand, and latency where events are not tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from quantbench.core.record import Missing
from quantbench.core.trace import Generation, LoadPoint, Round, ServerMemory, TopLogprobs
from quantbench.metrics.latency import latency
from quantbench.metrics.served import served

if TYPE_CHECKING:
    from quantbench.core.trace import Trace

POINTS = (
    LoadPoint(concurrency=1, tokens=32, seconds=0.5, ttft_s=(0.1,)),
    LoadPoint(concurrency=3, tokens=96, seconds=0.75, ttft_s=(0.3, 0.1, 0.4)),
    LoadPoint(concurrency=2, tokens=60, seconds=0.5, ttft_s=(0.1, 0.2)),
)
TOP = TopLogprobs(positions=40, k=5, top1=0.9, overlap=0.8, error=0.02, kld=0.003, tail=0.25)
NATIVE = {"prompt_tokens": 100, "prefill_s": 0.5, "tokens": 64, "decode_s": 2.0}


@pytest.fixture
def answered(trace: Trace) -> Trace:
    """A trace of a server that tells everything."""
    answers = tuple(replace(streamed(8, 0.5, 0.5), e2e_s=seconds) for seconds in (2.0, 3.0))
    return replace(
        trace, load_points=POINTS, top_logprobs=TOP, native=NATIVE,
        rounds=tuple(Round(index=index, variant=(answer,), anchor=()) for index, answer in enumerate(answers)),
        halves=tuple(replace(answer, tokens=4, e2e_s=1.0) for answer in answers),
        server_memory=ServerMemory(pss_bytes=2**30, device_bytes=None, absent={"device_bytes": "the model ran on the CPU"}),
    )  # fmt: skip


def test_every_column_has_its_figure(answered: Trace) -> None:
    values = dict(served.compute(answered, None))
    assert json.loads(str(values.pop("concurrency_tps"))) == {"1": 64.0, "2": 120.0, "3": 128.0}
    assert values == {
        "concurrency": 3, "concurrent_tps": 128.0, "concurrent_ttft_s": 0.3,
        "saturation_concurrency": Missing("not saturated at 3, the most requests at once; raise --concurrency"),
        "tpot_difference_s": ((2.0 - 1.0) / 4 + (3.0 - 1.0) / 4) / 2,
        "top_logprob_positions": 40, "top1_served": 0.9, "topk_overlap": 0.8, "topk_logprob_error": 0.02,
        "topk_kld": 0.003, "topk_tail": 0.25, "native_decode_tps": 32.0, "native_prefill_tps": 200.0,
        "server_pss_bytes": 2**30, "server_device_bytes": Missing("the model ran on the CPU"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({1: 100, 2: 190, 4: 200}, 2),  # 95 % of the best
        ({1: 100, 2: 189, 4: 200}, None),
        ({1: 100, 2: 80}, 1),
        ({1: 100}, None),
    ],
)
def test_the_saturation_point_is_the_least_that_reaches_95_percent(
    answered: Trace, rates: dict[int, int], expected: int | None
) -> None:
    points = tuple(LoadPoint(concurrency=level, tokens=rate, seconds=1.0, ttft_s=(0.1,)) for level, rate in rates.items())
    found = served.compute(replace(answered, load_points=points), None)["saturation_concurrency"]
    assert found == expected if expected else isinstance(found, Missing)


def test_answers_that_the_server_ends_by_itself_have_no_difference(answered: Trace) -> None:
    same = tuple(replace(half, tokens=8) for half in answered.halves)
    found = served.compute(replace(answered, halves=same), None)["tpot_difference_s"]
    assert found == Missing("no two answers to a prompt differ in length: the server ends them itself")


def test_other_methods_have_none_and_say_why(trace: Trace) -> None:
    none = Missing("measured only for servers")
    assert served.compute(trace, None) == {column.name: none for column in served.columns}


def test_what_the_server_does_not_tell_has_the_reason_given(answered: Trace) -> None:
    silent = replace(answered, top_logprobs=None, native={}, absent={"top_logprobs": "it gives none", "native": "not Ollama"})
    values = served.compute(silent, None)
    for name in ("top_logprob_positions", "top1_served", "topk_overlap", "topk_logprob_error", "topk_kld", "topk_tail"):
        assert values[name] == Missing("it gives none")
    for name in ("native_decode_tps", "native_prefill_tps"):
        assert values[name] == Missing("not Ollama")
    assert values["concurrency"] == 3


def test_no_token_in_common_leaves_no_error(answered: Trace) -> None:
    values = served.compute(replace(answered, top_logprobs=replace(TOP, overlap=0.0, error=None)), None)
    assert values["topk_logprob_error"] == Missing("server and reference name no token in common")
    assert values["topk_overlap"] == 0.0


def streamed(tokens: int, *gaps_s: float, prompt_tokens: int | None = 10) -> Generation:
    return Generation(
        prompt=0, prompt_tokens=prompt_tokens, prefill_s=0.5, gaps_s=gaps_s, e2e_s=0.5 + sum(gaps_s), tokens=tokens
    )


def in_rounds(trace: Trace, *answers: Generation) -> Trace:
    return replace(trace, rounds=tuple(Round(index=index, variant=answers, anchor=()) for index in range(6)))


def test_tokens_are_counted_where_events_hold_several(trace: Trace) -> None:
    """Nine tokens in two gaps and five in one: twelve after the first of each, in one second."""
    values = latency.compute(in_rounds(trace, streamed(9, 0.25, 0.25), streamed(5, 0.5)), None)
    assert values["decode_tps"] == pytest.approx(12 / 1.0)
    assert values["tps"] == pytest.approx(14 / 2.0)
    assert values["tpot_s"] == pytest.approx((0.5 / 8 + 0.5 / 4) / 2)
    assert values["prefill_tps"] == pytest.approx(20 / 1.0)


def test_by_default_a_gap_is_a_token() -> None:
    generation = Generation(prompt=0, prompt_tokens=1, prefill_s=1.0, gaps_s=(0.1, 0.1), e2e_s=1.2)
    assert generation.tokens == 3


def test_answers_of_one_event_have_no_time_between_tokens(trace: Trace) -> None:
    values = latency.compute(in_rounds(trace, streamed(9), streamed(5, 0.0)), None)
    for name in ("tpot_s", "tpot_mad_s", "tpot_p90_s", "tpot_p99_s", "decode_tps", "decode_tps_low", "decode_tps_high"):
        assert values[name] == Missing("every answer came in one piece, so there is no time between tokens")
    assert values["tps"] == pytest.approx(14 / 1.0)
    assert set(values) == {column.name for column in latency.columns}


def test_an_answer_of_one_event_does_not_disturb_the_others(trace: Trace) -> None:
    values = latency.compute(in_rounds(trace, streamed(1), streamed(5, 0.5)), None)
    assert values["decode_tps"] == pytest.approx(4 / 0.5)
    assert values["tpot_s"] == pytest.approx(0.5 / 4)


def test_prompts_that_nobody_counted_have_no_rate(trace: Trace) -> None:
    values = latency.compute(in_rounds(trace, streamed(5, 0.5), streamed(5, 0.5, prompt_tokens=None)), None)
    for name in ("prefill_tps", "prefill_tps_low", "prefill_tps_high"):
        assert isinstance(values[name], Missing)
    assert values["decode_tps"] == pytest.approx(8.0)
