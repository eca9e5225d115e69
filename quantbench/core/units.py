"""Parse and format bytes, seconds, rates, divergences, ratios and intervals. Base units are stored, and scaled for display."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from quantbench.core.errors import UsageError

GB = 10**9
GIB = 2**30
_BYTE_UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": GB, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": GIB, "TIB": 2**40,
    "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40,
}  # fmt: skip
_PLAIN_FROM = 0.01
"""Smaller divergences are written with an exponent."""


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``24GiB``, ``500MB`` or ``8G`` (a bare K, M, G or T is binary, as in llama.cpp and Docker).

    Raises UsageError if the text is not a size, or not positive.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    factor = _BYTE_UNITS.get(match.group(2).upper()) if match else None
    size = float(match.group(1)) * factor if match and factor else 0.0
    if not 1 <= size < math.inf:
        raise UsageError(f"{text!r} is not a memory size; write for example 24GiB, 16GB or 512MiB")
    return round(size)


def format_bytes(count: float) -> str:
    """A size in decimal units with three significant digits: ``11.5 MB``, ``4.08 GB``."""
    for name, factor in (("GB", GB), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= factor:
            return f"{significant(count / factor)} {name}"
    return f"{count:.0f} B"


def format_limit(count: int) -> str:
    """A limit as people write it: whole GiB or MiB, else decimal."""
    for name, factor in (("GiB", GIB), ("MiB", 2**20)):
        if count % factor == 0:
            return f"{count // factor} {name}"
    return format_bytes(count)


def format_seconds(value: float) -> str:
    """A duration with three significant digits: ``1.24 s``, ``3.1 ms``, ``212 us``."""
    for name, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(value) >= factor:
            return f"{significant(value / factor)} {name}"
    return f"{significant(value / 1e-9)} ns"


def significant(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits, without an exponent for everyday magnitudes."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e" in text else text


def short(value: float) -> str:
    """A divergence with two significant digits."""
    return significant(value, 2)


def with_error(value: float, error: float | None) -> str:
    """``1.88e-03 ± 0.10e-03``: figure and error to the error's second digit, with one exponent; without an error if None."""
    if not error or not value:
        return short(value) if error is None else f"{short(value)} ± {short(error)}"
    exponent = math.floor(math.log10(abs(value))) if abs(value) < _PLAIN_FROM else 0
    scaled = error / 10.0**exponent
    digits = min(max(1 - math.floor(math.log10(scaled)), 1), 4)
    suffix = f"e{exponent:+03d}" if exponent else ""
    return f"{value / 10.0**exponent:.{digits}f}{suffix} ± {scaled:.{digits}f}{suffix}"


def with_interval(
    value: float, low: float | None, high: float | None, unit: str = "", show: Callable[[float], str] = significant
) -> str:
    """``812 tokens/s (790 to 830)``: a figure with its unit and its 95 % interval, if there is one."""
    figure = f"{show(value)} {unit}".rstrip()
    return figure if low is None or high is None else f"{figure} ({show(low)} to {show(high)})"


def times(ratio: float) -> str:
    """A ratio with two decimals, three below 1."""
    return f"{ratio:.2f}" if abs(ratio) >= 1 else f"{ratio:.3f}"
