"""How divergences, ratios and intervals are written."""

from __future__ import annotations

import math
from collections.abc import Callable

from quantbench.core.units import significant

PLAIN_FROM = 0.01
"""Smaller divergences are written with an exponent."""


def short(value: float) -> str:
    """A divergence with two significant digits."""
    return significant(value, 2)


def with_error(value: float, error: float | None) -> str:
    """``1.88e-03 ± 0.10e-03``: a figure and its error to the error's second digit, under one exponent; None has no error."""
    if not error or not value:
        return short(value) if error is None else f"{short(value)} ± {short(error)}"
    exponent = math.floor(math.log10(abs(value))) if abs(value) < PLAIN_FROM else 0
    scaled = error / 10.0**exponent
    digits = min(max(1 - math.floor(math.log10(scaled)), 1), 4)
    suffix = f"e{exponent:+03d}" if exponent else ""
    return f"{value / 10.0**exponent:.{digits}f}{suffix} ± {scaled:.{digits}f}{suffix}"


def with_interval(
    value: float, low: float | None, high: float | None, unit: str = "", show: Callable[[float], str] = significant
) -> str:
    """``812 tokens/s (790 to 830)``: a figure with its unit and its 95 % interval, where there is one."""
    figure = f"{show(value)} {unit}".rstrip()
    return figure if low is None or high is None else f"{figure} ({show(low)} to {show(high)})"


def times(ratio: float) -> str:
    """A ratio with two decimals, three below 1."""
    return f"{ratio:.2f}" if abs(ratio) >= 1 else f"{ratio:.3f}"
