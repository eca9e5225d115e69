"""Planned sizes for the tables: what the weights of a variant of a well-known model will take, asked for once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from quantbench import planner
from quantbench.architecture import Architecture
from quantbench.errors import QuantbenchError
from quantbench.footprint import Weights
from quantbench.methods import METHODS
from quantbench.units import GB

_BYTE_BITS = 8


@cache
def architecture_of(model: str) -> Architecture:
    """The architecture of a built-in configuration."""
    return planner.read_architecture(model)


def planned_weights(model: str, variants: Iterable[str]) -> dict[str, Weights]:
    """The forecast for each ``method/precision``; of one that cannot be planned the bytes are None, with the reason."""
    wanted: dict[str, dict[str, None]] = {}
    for variant in variants:
        method, _, precision = variant.partition("/")
        wanted.setdefault(method, {})[precision] = None
    return {
        f"{method}/{precision}": weights
        for method, precisions in wanted.items()
        for precision, weights in _forecast(model, method, tuple(precisions)).items()
    }


def nominal_bits(variant: str) -> int:
    """The bits in the name of a precision, 0 where there are none."""
    method, _, precision = variant.partition("/")
    return METHODS[method].precision(precision).bits if method in METHODS else 0


def ideal_bytes(values: float, bits: float) -> float:
    """Bytes of so many values at so many bits, as tutorials count."""
    return values * bits / _BYTE_BITS


def bits_of(count: float, values: int) -> float:
    """Bits of a value where so many take so many bytes."""
    return _BYTE_BITS * count / values


def bits_per_weight(model: str, weights: Weights) -> float | None:
    """Bits of a model's weights over its parameters."""
    known = weights.weight_bytes
    return None if known is None else bits_of(known, architecture_of(model).parameters)


def gigabytes(count: float) -> str:
    """A size with two decimals, so that its rounding shows."""
    return f"{count / GB:.2f} GB"


@cache
def _forecast(model: str, method: str, precisions: tuple[str, ...]) -> Mapping[str, Weights]:
    try:
        known = {each.name for each in METHODS[method].precisions}
        found = planner.forecast(architecture_of(model), method, [name for name in precisions if name in known])
    except QuantbenchError as error:
        return {name: Weights(weight_bytes=None, note=str(error)) for name in precisions}
    strange = Weights(weight_bytes=None, note=f"{method} has no such precision")
    return {name: found.get(name, strange) for name in precisions}
