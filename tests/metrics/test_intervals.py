"""Intervals of the similarity figures against scipy's on prompt means, and what stands where there is none."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.record import Missing
from quantbench.core.statistics import bca_interval
from quantbench.core.trace import Answer
from quantbench.metrics.intervals import intervals
from quantbench.metrics.text import compare_answers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from quantbench.core.record import Value
    from quantbench.core.trace import Reference, Trace

    Compute = Callable[..., dict[str, Value]]

NO_REFERENCE = Missing("no reference to compare with: it cannot open this checkpoint here")
ONE = Missing("one prompt has no spread between prompts")


@pytest.fixture
def compute(trace: Trace, tmp_path: Path) -> Compute:
    """The columns of arrays, which keywords replace or, being None, leave out; five positions a prompt."""
    import numpy as np

    def make(prompts: int = 10, **changes: Any) -> dict[str, Value]:
        rng = np.random.default_rng(prompts)
        size = 5 * prompts
        nll = rng.gamma(2.0, 1.0, size)
        arrays = {
            "prompt": np.repeat(np.arange(prompts, dtype=np.int32), 5), "kld": rng.gamma(0.5, 0.02, size), "nll": nll,
            "nll_reference": nll - rng.normal(0.01, 0.1, size), "top1": rng.random(size) < 0.8,
            "ear": 1 - rng.beta(1.0, 20.0, size), **changes,
        }  # fmt: skip
        path = tmp_path / "columns-0.npz"
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        make.arrays = arrays  # type: ignore[attr-defined]
        return dict(intervals.compute(replace(trace, columns=path), None))

    return make


def _ends(values: dict[str, Value], name: str) -> tuple[Value, Value]:
    return values[f"{name}_low"], values[f"{name}_high"]


def _by_scipy(values: Any) -> tuple[float, float]:
    """The t interval of the means of groups of five; of shares it may reach beyond 1."""
    from scipy.stats import sem, t

    means = values.reshape(-1, 5).mean(axis=1)
    low, high = t.interval(0.95, len(means) - 1, loc=means.mean(), scale=sem(means))
    return float(low), float(high)


def test_of_ten_prompts_they_are_t_intervals_of_the_prompts_means(compute: Compute) -> None:
    values = compute(10)
    arrays = compute.arrays  # type: ignore[attr-defined]
    assert (values["clusters"], values["few_clusters"]) == (10, True)
    assert _ends(values, "kld_mean") == pytest.approx(_by_scipy(arrays["kld"]))
    low, high = _by_scipy(arrays["top1"].astype(float))
    assert _ends(values, "top1_agreement") == pytest.approx((low, min(high, 1.0)))
    low, high = _by_scipy(arrays["ear"])
    assert _ends(values, "ear") == pytest.approx((low, min(high, 1.0)))
    assert _ends(values, "ppl") == pytest.approx(tuple(map(math.exp, _by_scipy(arrays["nll"]))))
    paired = _by_scipy(arrays["nll"] - arrays["nll_reference"])
    assert _ends(values, "ppl_ratio") == pytest.approx(tuple(map(math.exp, paired)))


def test_of_thirty_chunks_they_are_bootstrapped(compute: Compute) -> None:
    values = compute(30)
    arrays = compute.arrays  # type: ignore[attr-defined]
    assert (values["clusters"], values["few_clusters"]) == (30, False)
    assert _ends(values, "kld_mean") == bca_interval(arrays["kld"].tolist(), arrays["prompt"].tolist())
    logs = bca_interval(arrays["nll"].tolist(), arrays["prompt"].tolist())
    assert _ends(values, "ppl") == pytest.approx(tuple(map(math.exp, logs)))


def test_chrf_has_the_interval_of_the_prompts(trace: Trace, reference: Reference) -> None:
    from scipy.stats import sem, t

    answers = tuple(
        replace(each, text=text) for each, text in zip(trace.answers, ("answer to one", "answer", "to"), strict=True)
    )
    values = intervals.compute(replace(trace, answers=answers), reference)
    scores = [output.chrf for output in compare_answers(answers, reference.answers)]
    low, high = t.interval(0.95, 2, loc=sum(scores) / 3, scale=sem(scores))
    assert low < 0
    assert high > 100
    assert _ends(dict(values), "chrf") == (0.0, 100.0)

    close = tuple(replace(each, text=f"{each.text} {'x' * length}") for length, each in enumerate(reference.answers))
    values = intervals.compute(replace(trace, answers=close), reference)
    scores = [output.chrf for output in compare_answers(close, reference.answers)]
    low, high = t.interval(0.95, 2, loc=sum(scores) / 3, scale=sem(scores))
    assert low > 0
    assert _ends(dict(values), "chrf") == pytest.approx((low, min(high, 100.0)))


def test_answers_alone_count_as_clusters(trace: Trace, reference: Reference) -> None:
    """A server has no columns."""
    answers = tuple(Answer(prompt=each.prompt, prompt_tokens=(), tokens=None, text=each.prompt) for each in trace.answers)
    values = intervals.compute(replace(trace, answers=answers, columns=None), reference)
    assert (values["clusters"], values["few_clusters"]) == (3, True)
    assert isinstance(values["chrf_low"], float)
    assert values["kld_mean_low"] == NO_REFERENCE


def test_equal_answers_have_no_spread(trace: Trace, reference: Reference) -> None:
    found = intervals.compute(trace, reference)["chrf_low"]
    assert isinstance(found, Missing)
    assert "no spread" in found.reason


def test_a_figure_keeps_to_what_it_can_be(compute: Compute) -> None:
    """Two prompts, far apart: both t intervals reach beyond what a divergence and a share can be."""
    import numpy as np

    kld = np.repeat([0.001, 0.1], 5)
    assert _by_scipy(kld)[0] < 0
    values = compute(2, kld=kld, top1=np.repeat([True, False], 5))
    assert values["kld_mean_low"] == 0.0
    assert _ends(values, "top1_agreement") == (0.0, 1.0)


def test_the_reference_against_itself_is_exactly_nothing(compute: Compute) -> None:
    import numpy as np

    nll = np.linspace(0.5, 2.0, 50)
    values = compute(10, kld=np.zeros(50), nll=nll, nll_reference=nll, top1=np.ones(50, dtype=bool))
    assert _ends(values, "kld_mean") == (0.0, 0.0)
    assert _ends(values, "top1_agreement") == _ends(values, "ppl_ratio") == (1.0, 1.0)


def test_full_agreement_by_luck_makes_no_certainty(compute: Compute) -> None:
    import numpy as np

    values = compute(10, top1=np.ones(50, dtype=bool))
    for found in _ends(values, "top1_agreement"):
        assert isinstance(found, Missing)
        assert "no spread" in found.reason


def test_columns_of_an_earlier_version_have_the_other_intervals(compute: Compute) -> None:
    values = compute(10, ear=None)
    assert isinstance(values["kld_mean_low"], float)
    for found in _ends(values, "ear"):
        assert found == Missing("it was measured before quantbench kept this; run it again")


def test_one_prompt_has_no_intervals_and_says_why(compute: Compute, trace: Trace, reference: Reference) -> None:
    values = compute(1)
    assert (values["clusters"], values["few_clusters"]) == (1, True)
    for name in ("kld_mean", "top1_agreement", "ppl", "ppl_ratio"):
        assert _ends(values, name) == (ONE, ONE)
    alone = intervals.compute(replace(trace, answers=trace.answers[:1]), replace(reference, answers=reference.answers[:1]))
    assert alone["chrf_low"] == ONE


def test_a_text_without_a_reference_has_its_perplexity_only(compute: Compute) -> None:
    values = compute(4, kld=None, nll_reference=None, top1=None)
    low, high = _ends(values, "ppl")
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert low < high
    for name in ("kld_mean", "top1_agreement", "ppl_ratio", "chrf"):
        assert _ends(values, name) == (NO_REFERENCE, NO_REFERENCE)


def test_without_anything_every_column_has_the_traces_reason(trace: Trace) -> None:
    absent = {"columns": "a module has no tokens", "answers": "a module says nothing"}
    values = intervals.compute(replace(trace, columns=None, answers=(), absent=absent), None)
    assert values.pop("chrf_low") == values.pop("chrf_high") == Missing("a module says nothing")
    assert set(values.values()) == {Missing("a module has no tokens")}


def test_a_broken_variant_has_no_intervals_and_no_crash(compute: Compute) -> None:
    import numpy as np

    values = compute(30, kld=np.full(150, math.inf), nll=np.linspace(800.0, 900.0, 150))
    for found in _ends(values, "kld_mean"):
        assert isinstance(found, Missing)
        assert "broken" in found.reason
    for found in _ends(values, "ppl"):
        assert isinstance(found, Missing)
        assert "broken" in found.reason


def test_every_column_is_filled_and_says_how_it_is_made(trace: Trace, reference: Reference) -> None:
    assert set(intervals.compute(trace, reference)) == {column.name for column in intervals.columns}
    for column in intervals.columns:
        assert column.doc, column.name
        assert column.formula, column.name
        assert column.source, column.name
        assert column.better is None, column.name
