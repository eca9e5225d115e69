"""Planned sizes for the tables: what the weights of a well-known model's variants will take, computed once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache

from quantbench.core.errors import QuantbenchError
from quantbench.core.units import GB, format_limit
from quantbench.methods import METHODS
from quantbench.models.architecture import Architecture
from quantbench.models.footprint import Weights
from quantbench.planning import planner
from quantbench.planning.matrix import every_variant
from quantbench.planning.planner import Device, Planned

_BYTE_BITS = 8
_DRY_RUNS = "llama.cpp"
"""The runtime whose dry runs cover every precision of a method."""


@cache
def architecture_of(model: str) -> Architecture:
    """The architecture of a built-in configuration."""
    return planner.read_architecture(model)


def planned_weights(model: str, variants: Iterable[str]) -> dict[str, Weights]:
    """The forecast for each ``method/precision``; one that cannot be planned has None for its bytes, and the reason."""
    unknown = Weights(weight_bytes=None, note="no method has such a precision")
    wanted = {variant: variant.partition("/")[::2] for variant in variants}
    asked: dict[str, set[str]] = {}
    for method, precision in wanted.values():
        asked.setdefault(method, set()).add(precision)
    found = {method: _forecast(model, method, _at_once(method, precisions)) for method, precisions in asked.items()}
    return {variant: found[method].get(precision, unknown) for variant, (method, precision) in wanted.items()}


@cache
def planned_on(model: str, methods: Sequence[str], memory_bytes: int) -> dict[str, Planned]:
    """The plan of every variant of some methods for one memory, where its peak is known; 4096 tokens, one sequence."""
    architecture = architecture_of(model)
    device = Device(name=format_limit(memory_bytes), memory_bytes=memory_bytes)
    workload = planner.workload(architecture, context=None)
    plans = planner.plan(architecture, every_variant(methods, ()), workload, [device])
    return {each.variant: each for each in plans if each.peak_bytes is not None}


def nominal_bits(variant: str) -> float:
    """The bits in the name of a precision; 0 where it names none."""
    method, _, precision = variant.partition("/")
    known = METHODS[method].precisions if method in METHODS else ()
    return next((each.bits for each in known if each.name == precision), None) or 0


def ideal_bytes(values: float, bits: float) -> float:
    """Bytes of ``values`` values of ``bits`` bits each, as tutorials count."""
    return values * bits / _BYTE_BITS


def bits_of(count: float, values: int) -> float:
    """Bits per value where ``values`` values take ``count`` bytes."""
    return _BYTE_BITS * count / values


def bits_per_weight(model: str, weights: Weights) -> float | None:
    """Bits of a model's weights over its parameters; None where they cannot be planned."""
    known = weights.weight_bytes
    return None if known is None else bits_of(known, architecture_of(model).parameters)


def gigabytes(count: float) -> str:
    """A size with two decimals, which shows how a claim was rounded."""
    return f"{count / GB:.2f} GB"


def _at_once(method: str, asked: Collection[str]) -> tuple[str, ...]:
    """The precisions of a method to be forecast together: those asked for, or all, as one dry run of llama.cpp covers them."""
    known = [each.name for each in METHODS[method].precisions] if method in METHODS else []
    whole = bool(known) and METHODS[method].runtime == _DRY_RUNS
    return tuple(name for name in known if whole or name in asked)


@cache
def _forecast(model: str, method: str, names: Sequence[str]) -> Mapping[str, Weights]:
    if not names:
        return {}
    try:
        return planner.forecast(architecture_of(model), method, names)
    except QuantbenchError as error:
        return {name: Weights(weight_bytes=None, note=str(error)) for name in names}
