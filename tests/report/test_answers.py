"""Answers side by side: what differs is marked, what is equal is not, and only what fits is shown."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.text import visible
from quantbench.report.sections.answers import MOST_CHARACTERS, differences, side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable

    from quantbench.report import Results

texts = st.text(alphabet=st.sampled_from("ab <>&\"'\n\x00\u202e.é"), max_size=30)


def _text(markup: str) -> str:
    """What is left of ``markup`` without its elements and the signs at newlines."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup.replace('<span class="nl" aria-hidden="true">↵</span>', "")))


@given(first=texts, second=texts)
def test_both_texts_are_whole_and_only_what_is_marked_differs(first: str, second: str) -> None:
    left, right = differences(first, second)
    assert _text(left) == visible(first)
    assert _text(right) == visible(second)
    kept = [re.sub(rf"<{tag}>.*?</{tag}>", "", side, flags=re.DOTALL) for tag, side in (("del", left), ("ins", right))]
    assert kept[0] == kept[1]


@given(text=texts)
def test_no_tag_but_ours_comes_of_any_text(text: str) -> None:
    left, right = differences(text, "b")
    assert set(re.findall(r"<[^>]*>", left + right)) <= {
        "<del>", "</del>", "<ins>", "</ins>", '<span class="nl" aria-hidden="true">', "</span>"
    }  # fmt: skip


def test_words_are_marked_and_not_letters() -> None:
    left, right = differences("return the value of x", "return the sum of x")
    assert left == "return the <del>value</del> of x"
    assert right == "return the <ins>sum</ins> of x"


def test_blanks_alone_are_not_what_two_texts_share() -> None:
    assert differences("a b c", "d e f") == ("<del>a b c</del>", "<ins>d e f</ins>")
    assert differences("a  b", "a b") == ("a<del>  </del>b", "a<ins> </ins>b")


def test_an_invisible_difference_is_seen() -> None:
    left, right = differences("pay", "pay\u202e")
    assert (left, right) == ("pay", "pay<ins>\\u202e</ins>")


def _shown(results: Results, room: int) -> Any:
    assert results.outputs is not None
    return side_by_side(results.groups[0], results.outputs, room=room, opened="gguf/q8_0")


def test_each_variant_stands_beside_the_reference(everything_results: Results) -> None:
    shown = _shown(everything_results, 10**6)
    names = [each.name for each in shown.variants]
    assert names[0] == "torch/fp32 (control)"
    assert "torch/fp32" not in names
    assert len(names) == 12
    assert (shown.numbers, shown.total, shown.cut) == ((1, 2), 2, False)
    by_name = {each.name: each for each in shown.variants}
    assert [answer.same for answer in by_name["gguf/q8_0"].answers] == [True, True]
    assert not by_name["gguf/q2_k"].answers[0].same
    assert [each.name for each in shown.variants if each.opened] == ["gguf/q8_0"]
    assert by_name["gguf/q8_0"].answers[0].figures == ""
    assert by_name["gguf/q8_0"].figures == "2 of 2 answers equal, chrF 80.0"
    assert by_name["gguf/q2_k"].answers[0].figures == "token 2 is the first to differ, 50% of tokens equal, chrF 70.0"


def test_of_too_many_prompts_the_first_are_shown(everything_results: Results) -> None:
    shown = _shown(everything_results, 1)
    assert (shown.numbers, shown.total) == ((1,), 2)


def test_of_a_long_text_the_beginning_is_shown(write: Any, record: Callable[..., Any]) -> None:
    from dataclasses import replace

    long = record("gguf/q2_k")
    said = tuple(replace(each, variant_text="word " * MOST_CHARACTERS) for each in long.outputs)
    shown = _shown(write([record("torch/fp32"), replace(long, outputs=said)]), 10**6)
    assert shown.cut
    assert len(shown.variants[0].answers[0].variant) < 1.2 * MOST_CHARACTERS


def test_of_repeats_the_first_answers_are_shown(write: Any, record: Callable[..., Any]) -> None:
    from dataclasses import replace

    runs = [record("gguf/q8_0", repeat=number) for number in range(2)]
    other = replace(runs[1], outputs=tuple(replace(each, variant_text="of the second") for each in runs[1].outputs))
    results = write([record("torch/fp32"), other, runs[0]])
    shown = side_by_side(results.groups[0], results.outputs, room=10**6, opened="")
    assert shown is not None
    assert len(shown.variants) == 1
    assert "second" not in "".join(each.variant for each in shown.variants[0].answers)


def test_nothing_is_shown_where_nothing_was_said(write: Any, record: Callable[..., Any]) -> None:
    from dataclasses import replace

    results = write([record("torch/fp32"), replace(record("gguf/q8_0"), outputs=())])
    assert side_by_side(results.groups[0], results.outputs, room=10**6, opened="") is None


@pytest.mark.parametrize("sign", ["\u2028", "\u202e", "\x00", "\x1b", "\u200f", "\ufeff"])
def test_what_steers_the_eye_is_shown_as_its_escape(sign: str) -> None:
    assert visible(f"a{sign}\nb") == f"a{sign.encode('unicode_escape').decode()}\nb"
