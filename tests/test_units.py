"""Sizes and durations: what is printed can be read back, and nonsense is refused."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.errors import UsageError
from quantbench.core.units import format_bytes, format_seconds, parse_bytes, significant, times, with_error, with_interval

THREE_DIGITS = 0.5e-2
"""Largest relative error of rounding to three significant digits."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 * 1024**3),
        ("24G", 24 * 1024**3),
        ("24 gib", 24 * 1024**3),
        ("16GB", 16 * 1000**3),
        ("1.5kB", 1500),
        ("512MiB", 512 * 1024**2),
        ("2T", 2 * 1024**4),
        ("2TB", 2 * 1000**4),
        (" 100 ", 100),
        ("7B", 7),
    ],
)
def test_parse_bytes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "ten GiB", "-4GiB", "0", "0.0GB", "1e9", "4 Gigs", "4GiB5", "0x10", "nan", "inf"])
def test_what_is_no_size_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"{text!r} is not a memory size; write for example 24GiB, 16GB or 512MiB"


@pytest.mark.parametrize("text", ["0.4B", "9" * 400 + "GB"])
def test_sizes_that_round_to_nothing_or_overflow_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a memory size"):
        parse_bytes(text)


@given(st.integers(1, 2**53), st.sampled_from(["", "B", " B"]))
def test_whole_bytes_are_read_exactly(count: int, unit: str) -> None:
    assert parse_bytes(f"{count}{unit}") == count


@given(st.integers(1, 10**14))
def test_a_printed_size_reads_back_within_three_digits(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=THREE_DIGITS)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0 B"), (999, "999 B"), (11_534_336, "11.5 MB"), (4_081_004_224, "4.08 GB"), (1500, "1.5 kB")]
)
def test_format_bytes(count: int, expected: str) -> None:
    assert format_bytes(count) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(1.2351, "1.24 s"), (0.0031, "3.1 ms"), (0.000212, "212 us"), (5e-9, "5 ns"), (3600.0, "3600 s")]
)
def test_format_seconds(value: float, expected: str) -> None:
    assert format_seconds(value) == expected


@given(st.floats(1e-9, 1e5))
def test_a_printed_duration_reads_back_within_three_digits(value: float) -> None:
    number, unit = format_seconds(value).split()
    assert float(number) * {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[unit] == pytest.approx(value, rel=THREE_DIGITS)


@given(st.floats(1e-12, 1e12), st.booleans(), st.integers(1, 6))
def test_significant_is_the_value_rounded_to_so_many_digits(value: float, negative: bool, digits: int) -> None:
    signed = -value if negative else value
    text = significant(signed, digits)
    assert float(text) == pytest.approx(signed, rel=0.5 * 10.0 ** (1 - digits) * 1.0001)
    assert len(Decimal(text).normalize().as_tuple().digits) <= digits


@given(st.floats(1e-3, 1e6, exclude_max=True))
def test_everyday_numbers_carry_no_exponent(value: float) -> None:
    assert "e" not in significant(value)


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0"), (1, "1"), (123456, "123000"), (0.0012345, "0.00123"), (1e-5, "1.00e-05")]
)
def test_significant(value: float, expected: str) -> None:
    assert significant(value) == expected


def test_significant_of_what_is_no_number() -> None:
    assert significant(math.nan) == "nan"
    assert significant(math.inf) == "inf"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.88e-3, 1.02e-4, "1.88e-03 ± 0.10e-03"),
        (0.0589, 0.00281, "0.0589 ± 0.0028"),
        (0.526, 0.0203, "0.526 ± 0.020"),
        (7.28e-7, 5.2e-8, "7.28e-07 ± 0.52e-07"),
        (1e-4, 3e-4, "1.0e-04 ± 3.0e-04"),
        (0.05, 1e-9, "0.0500 ± 0.0000"),
        (-1e-9, 1e-9, "-1.0e-09 ± 1.0e-09"),
        (0.0, 0.0, "0 ± 0"),
        (0.012, None, "0.012"),
    ],
)
def test_a_figure_and_its_error_share_an_exponent(value: float, error: float | None, text: str) -> None:
    assert with_error(value, error) == text


def test_an_interval_is_shown_where_there_is_one() -> None:
    assert with_interval(812.3, 790.0, 830.4, "tokens/s") == "812 tokens/s (790 to 830)"
    assert with_interval(812.3, None, 830.4) == "812"


def test_ratios() -> None:
    assert [times(value) for value in (5.736, 1.0, 0.2746)] == ["5.74", "1.00", "0.275"]
