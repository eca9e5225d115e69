"""Columns of a module against numpy and scipy; a model with tokens has none of them, with the reason."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from quantbench.core.record import Missing, Value
from quantbench.core.trace import Calls, OutputDistance, Trace
from quantbench.metrics import evaluate
from quantbench.metrics.module import module

COLUMNS = {column.name for column in module.columns}
VARIANT = np.random.default_rng(1).lognormal(-7.0, 0.3, (7, 10))
ANCHOR = np.random.default_rng(2).lognormal(-6.0, 0.3, (7, 3))


@pytest.fixture
def called(trace: Trace) -> Trace:
    """The trace of a module."""
    calls = tuple(Calls(variant=tuple(a), anchor=tuple(b)) for a, b in zip(VARIANT.tolist(), ANCHOR.tolist(), strict=True))
    why = {"rounds": "no prompts", "answers": "no answers", "columns": "no tokens"}
    distance = OutputDistance(inputs=64, cosine=0.75, max_abs_error=0.5)
    return replace(trace, rounds=(), answers=(), columns=None, calls=calls, distance=distance, absent=why)


def _values(trace: Trace) -> dict[str, Value]:
    values = dict(module.compute(trace, None))
    assert set(values) == COLUMNS
    return values


def _reasons(values: dict[str, Value]) -> dict[str, str]:
    return {name: value.reason for name, value in values.items() if isinstance(value, Missing)}


def test_call_times_are_medians_over_all_calls(called: Trace) -> None:
    values = _values(called)
    assert values["call_s"] == pytest.approx(np.median(VARIANT))
    assert values["call_mad_s"] == pytest.approx(stats.median_abs_deviation(VARIANT, axis=None) * 1.4826, rel=1e-4)
    assert values["call_p90_s"] == pytest.approx(np.quantile(VARIANT, 0.9))


def test_the_ratio_is_of_paired_rounds_and_above_one_where_the_variant_is_faster(called: Trace) -> None:
    values = _values(called)
    ratios = np.median(ANCHOR, axis=1) / np.median(VARIANT, axis=1)
    assert values["call_ratio"] == pytest.approx(np.median(ratios))
    assert float(np.median(ratios)) > 1
    assert (values["call_ratio_low"], values["call_ratio_high"]) == pytest.approx((ratios.min(), ratios.max()))


def test_rounds_without_an_answer_of_the_anchor_have_no_part_in_the_ratio(called: Trace) -> None:
    first, *others = called.calls
    less = replace(called, calls=(replace(first, anchor=()), *others))
    ratios = (np.median(ANCHOR, axis=1) / np.median(VARIANT, axis=1))[1:]
    assert _values(less)["call_ratio"] == pytest.approx(np.median(ratios))
    assert _values(less)["call_s"] == _values(called)["call_s"]


def test_few_rounds_have_a_ratio_without_an_interval(called: Trace) -> None:
    values = _values(replace(called, calls=called.calls[:5]))
    assert isinstance(values["call_ratio"], float)
    assert set(_reasons(values)) == {"call_ratio_low", "call_ratio_high"}
    assert "5 rounds are too few" in _reasons(values)["call_ratio_low"]


def test_without_an_anchor_there_is_no_ratio(called: Trace) -> None:
    values = _values(replace(called, calls=tuple(replace(each, anchor=()) for each in called.calls)))
    assert set(_reasons(values)) == {"call_ratio", "call_ratio_low", "call_ratio_high"}
    assert "no anchor" in _reasons(values)["call_ratio"]


def test_the_distance_is_the_passs(called: Trace) -> None:
    values = _values(called)
    assert (values["output_cosine"], values["output_max_abs_error"]) == (0.75, 0.5)


def test_without_a_reference_the_distance_says_why(called: Trace) -> None:
    values = _values(replace(called, distance=None, absent={"distance": "it cannot open this"}))
    assert _reasons(values) == dict.fromkeys(("output_cosine", "output_max_abs_error"), "it cannot open this")


def test_a_cosine_of_nothing_is_missing(called: Trace) -> None:
    broken = replace(called, distance=OutputDistance(inputs=64, cosine=math.nan, max_abs_error=1.0))
    assert isinstance(evaluate(broken, None)["output_cosine"], Missing)


def test_a_model_with_tokens_has_none_of_it_and_says_why(trace: Trace) -> None:
    reasons = _reasons(_values(trace))
    assert set(reasons) == COLUMNS
    assert all("a model that reads tokens" in reason for reason in reasons.values())


def test_a_module_has_nothing_that_takes_tokens_and_says_why(called: Trace) -> None:
    values = evaluate(called, None)
    for name, words in {
        "decode_tps": "no prompts",
        "rounds": "no prompts",
        "kld_mean": "no tokens",
        "chrf": "no answers",
    }.items():
        value = values[name]
        assert isinstance(value, Missing)
        assert value.reason == words
