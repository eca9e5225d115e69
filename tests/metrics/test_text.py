"""Greedy answers compared: token by token by hand, chrF by sacrebleu itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.record import Missing
from quantbench.core.trace import Answer
from quantbench.metrics.text import compare_answers, text

if TYPE_CHECKING:
    from pathlib import Path

    from quantbench.core.trace import Reference, Trace

tokens = st.lists(st.integers(0, 3), max_size=6).map(tuple)
words = st.text("abc é.", max_size=20)


def _answer(ids: tuple[int, ...], said: str) -> Answer:
    return Answer(prompt="p", prompt_tokens=(1,), tokens=ids, text=said)


@pytest.mark.parametrize(
    ("ours", "theirs", "first", "share"),
    [
        ((1, 2, 3), (1, 2, 3), None, 1.0),
        ((1, 9, 3), (1, 2, 3), 1, 2 / 3),
        ((9, 2, 3), (1, 2, 3), 0, 2 / 3),
        ((1, 2), (1, 2, 3, 4), 2, 0.5),
        ((1, 2, 3, 4), (1, 2), 2, 0.5),
        ((), (1, 2), 0, 0.0),
        ((), (), None, 1.0),
    ],
)
def test_first_divergence_and_token_match(
    ours: tuple[int, ...], theirs: tuple[int, ...], first: int | None, share: float
) -> None:
    (output,) = compare_answers([_answer(ours, "x")], [_answer(theirs, "y")])
    assert (output.first_divergence, output.token_match) == (first, pytest.approx(share))
    assert output.exact_match == (first is None)


@given(tokens, tokens)
def test_tokens_agree_up_to_the_first_divergence_and_not_at_it(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    (output,) = compare_answers([_answer(ours, "x")], [_answer(theirs, "x")])
    first = output.first_divergence
    if first is None:
        assert ours == theirs
    else:
        assert ours[:first] == theirs[:first]
        assert ours[first : first + 1] != theirs[first : first + 1]
    longest = max(len(ours), len(theirs), 1)
    differing = sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
    assert output.token_match == pytest.approx(1 - differing / longest)


@given(words, words)
def test_chrf_is_sacrebleus(ours: str, theirs: str) -> None:
    import sacrebleu

    (output,) = compare_answers([_answer((1,), ours)], [_answer((2,), theirs)])
    if ours == theirs:
        assert output.chrf == 100.0
    else:
        assert output.chrf == pytest.approx(sacrebleu.sentence_chrf(ours, [theirs]).score)


@pytest.mark.parametrize(("said", "exact"), [(" the end", True), ("the end\n", True), ("the  end", False), ("", False)])
def test_text_alone_is_compared_but_for_white_space_around_it(said: str, exact: bool) -> None:
    """A server sends the space before the first word, which a tokenizer drops; it gives no ids to count."""
    ours = Answer(prompt="p", prompt_tokens=(1,), tokens=None, text=said)
    (output,) = compare_answers([ours], [_answer((1, 2), "the end")])
    assert output.exact_match is exact
    assert (output.first_divergence, output.token_match, output.variant_tokens) == (None, None, None)
    assert output.reference_tokens == (1, 2)
    assert output.variant_text == said


def test_columns_of_tokens_are_null_for_text_alone(trace: Trace, reference: Reference) -> None:
    answers = tuple(replace(answer, tokens=None) for answer in reference.answers)
    values = text.compute(replace(trace, answers=answers), reference)
    for name in ("first_divergence", "first_divergence_se", "token_match", "token_match_se"):
        assert values[name] == Missing("a server gives text, not token ids")
    assert (values["exact_match"], values["chrf"]) == (1.0, 100.0)
    assert set(values) == {column.name for column in text.columns}


def test_outputs_keep_both_answers_and_the_prompt(reference: Reference) -> None:
    changed = tuple(replace(answer, tokens=(9,), text="nine") for answer in reference.answers)
    outputs = compare_answers(changed, reference.answers)
    assert [output.index for output in outputs] == [0, 1, 2]
    assert [output.prompt for output in outputs] == ["one", "two", "three"]
    assert {output.variant_tokens for output in outputs} == {(9,)}
    assert [output.reference_text for output in outputs] == [answer.text for answer in reference.answers]


def test_outputs_keep_what_was_scored_on_their_prompt(trace: Trace, reference: Reference) -> None:
    assert trace.columns
    outputs = compare_answers(trace.answers, reference.answers, trace.columns)
    with np.load(trace.columns) as arrays:
        scored = {name: arrays[name].reshape(3, -1) for name in ("kld", "top1", "nll")}
    assert [output.scored_tokens for output in outputs] == [5, 5, 5]
    assert [output.kld for output in outputs] == [tuple(row) for row in scored["kld"].tolist()]
    means = {name: values.mean(axis=1).tolist() for name, values in scored.items()}
    assert [output.kld_mean for output in outputs] == pytest.approx(means["kld"])
    assert [output.top1_agreement for output in outputs] == pytest.approx(means["top1"])
    assert [output.nll_mean for output in outputs] == pytest.approx(means["nll"])


def test_outputs_say_nothing_of_a_prompt_that_was_not_scored(trace: Trace, reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "partly.npz"
    np.savez(path, prompt=np.array([1, 1]), kld=np.array([0.5, np.inf]), nll=np.ones(2), top1=np.array([True, False]))
    outputs = compare_answers(trace.answers, reference.answers, path)
    assert [output.scored_tokens for output in outputs] == [None, 2, None]
    assert [output.kld for output in outputs] == [None, (0.5, math.inf), None]
    assert [output.kld_mean for output in outputs] == [None, None, None]
    assert [output.top1_agreement for output in outputs] == [None, 0.5, None]
    assert {output.kld for output in compare_answers(trace.answers, reference.answers)} == {None}


def test_columns_are_means_over_prompts_with_plain_standard_errors(trace: Trace, reference: Reference) -> None:
    from scipy.stats import sem

    answers = (
        reference.answers[0],
        replace(reference.answers[1], tokens=(4, 5, 0, 7), text="answer to tow"),
        replace(reference.answers[2], tokens=(0,), text="no"),
    )
    values = text.compute(replace(trace, answers=answers), reference)
    outputs = compare_answers(answers, reference.answers)
    exact, share, chrf = [1.0, 0.0, 0.0], [1.0, 0.75, 0.0], [output.chrf for output in outputs]
    expected: dict[str, float] = {}
    for name, numbers in (
        ("first_divergence", [4.0, 2.0, 0.0]),
        ("exact_match", exact),
        ("token_match", share),
        ("chrf", chrf),
    ):
        expected |= {name: math.fsum(numbers) / 3, f"{name}_se": float(sem(numbers))}
    assert values == pytest.approx(expected)


def test_equal_answers_match_wholly(trace: Trace, reference: Reference) -> None:
    values = text.compute(trace, reference)
    assert (values["exact_match"], values["token_match"], values["chrf"], values["first_divergence"]) == (1.0, 1.0, 100.0, 4.0)
    assert (values["exact_match_se"], values["chrf_se"]) == (0.0, 0.0)


def test_one_prompt_has_no_errors_and_says_why(trace: Trace, reference: Reference) -> None:
    values = text.compute(replace(trace, answers=trace.answers[:1]), replace(reference, answers=reference.answers[:1]))
    for name in ("exact_match_se", "token_match_se", "chrf_se"):
        assert values[name] == Missing("one prompt has no spread between prompts")


def test_without_a_reference_every_column_says_so(trace: Trace) -> None:
    assert text.compute(trace, None) == {
        column.name: Missing("no reference to compare with: it cannot open this checkpoint here") for column in text.columns
    }


def test_without_a_reference_the_trace_may_know_why(trace: Trace) -> None:
    values = text.compute(replace(trace, absent={"answers": "known by its URL only"}), None)
    assert set(values.values()) == {Missing("known by its URL only")}


def test_every_column_is_filled(trace: Trace, reference: Reference) -> None:
    assert set(text.compute(trace, reference)) == {column.name for column in text.columns}
