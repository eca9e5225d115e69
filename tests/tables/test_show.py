"""How figures are written."""

from __future__ import annotations

import pytest

from quantbench.tables.show import times, with_error, with_interval


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
