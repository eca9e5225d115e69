"""Errors for people: one sentence with the nearest known names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quantbench.core import errors


def test_unknown_name_offers_the_nearest() -> None:
    error = errors.unknown_name("method", "bitsandbites", ["torch", "gguf", "bitsandbytes"])
    assert str(error) == "unknown method 'bitsandbites'; did you mean 'bitsandbytes'?"


def test_unknown_name_offers_two_near_ones() -> None:
    error = errors.unknown_name("precision", "q4_k", ["fp32", "q4_k_m", "q4_k_s"])
    assert str(error) == "unknown precision 'q4_k'; did you mean 'q4_k_s' or 'q4_k_m'?"


def test_unknown_name_far_from_all_lists_them_sorted() -> None:
    error = errors.unknown_name("method", "zzzzzz", ["torch", "gguf"])
    assert str(error) == "unknown method 'zzzzzz'; known: gguf, torch"


def test_of_very_many_names_some_are_listed_and_the_rest_counted() -> None:
    error = errors.unknown_name("column", "zzzzzz", [f"a{index:03}" for index in range(200)])
    assert str(error).endswith("a048, a049, and 150 more")


def test_unknown_name_looks_past_capitals() -> None:
    assert "did you mean 'q4_k_m'?" in str(errors.unknown_name("precision", "Q4_K_M", ["q4_k_m", "fp32"]))


@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=12), max_size=8))
def test_unknown_name_always_names_the_name(name: str, known: list[str]) -> None:
    assert repr(name) in str(errors.unknown_name("thing", name, known))
