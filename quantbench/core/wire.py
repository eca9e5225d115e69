"""Dataclasses as JSON: what one process writes, another reads back as the same type, or says what does not fit.

Tuples come back as tuples, paths as paths and members of an enumeration as such; NaN and infinities survive.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from quantbench.core.cache import write_atomically
from quantbench.core.errors import QuantbenchError
from quantbench.core.signals import Found

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")
_SHOWN = 3


def write(path: Path, value: object) -> None:
    """Write a dataclass, or a dict of them, whole or not at all; QuantbenchError where a field does not hold what it says."""
    text = json.dumps(plain(value))
    made(json.loads(text), type(value), str(path))  # so that it costs whoever put it there, and not who reads it
    write_atomically(path, text)


def read(path: Path, kind: type[T]) -> T:
    """What was written as a ``kind``; QuantbenchError where the file holds anything else."""
    try:
        body = json.loads(path.read_text())
    except ValueError as error:
        raise QuantbenchError(f"{path} is no JSON ({error}); remove it and start again") from error
    return made(body, kind, str(path))


def plain(value: object) -> Any:
    """Dicts, lists and scalars, as JSON has them."""
    return converter().unstructure(value)


def made(body: object, kind: type[T], name: str) -> T:
    """A ``kind`` of what JSON held; QuantbenchError, which says what of ``name`` is missing, unknown or of another shape."""
    from cattrs import transform_error

    try:
        return converter().structure(body, kind)
    except Exception as error:
        found = transform_error(error, "it")
        told = "; ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
        what = getattr(kind, "__name__", str(kind))
        raise QuantbenchError(f"{name} does not hold a {what} of this version ({told}); make it again") from error


@cache
def converter() -> Converter:
    """The one converter. Most commands read and write nothing of this kind, so that cattrs is imported here."""
    from cattrs import Converter

    made = Converter(forbid_extra_keys=True)
    for base in (str, int, float, bool):
        made.register_structure_hook(base, _scalar(base))
    made.register_structure_hook_factory(_is_tuple, lambda kind: _tuple(kind, made))
    made.register_structure_hook(Found, lambda body, _: _held(body, dict, str))
    return made


def _scalar(base: type) -> Callable[[object, Any], object]:
    """Takes a scalar as it is, where cattrs would make one of anything: a str of a dict, an int of a float."""
    wanted = (int, float) if base is float else (base,)

    def take(body: object, kind: Any) -> object:
        if type(body) not in wanted:
            raise TypeError(type(body).__name__)
        return body if kind is base else kind(body)  # an enumeration is dispatched by its base

    return take


def _is_tuple(kind: Any) -> bool:
    """Of any length: one of a fixed length has that counted."""
    return get_args(kind)[-1:] == (...,)


def _tuple(kind: Any, converter: Converter) -> Callable[[object, Any], object]:
    """Takes a list, where cattrs would take the keys of a dict and the characters of a string."""
    from cattrs.cols import homogenous_tuple_structure_factory

    take = homogenous_tuple_structure_factory(kind, converter)
    return lambda body, _: take(_held(body, list, tuple), kind)


def _held(body: object, *kinds: type) -> Any:
    if not isinstance(body, kinds):
        raise TypeError(type(body).__name__)
    return body
