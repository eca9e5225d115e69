"""Dataclasses as JSON: what one process writes, another reads back as the same type, or reports what does not fit.

Tuples come back as tuples, paths as paths and enumeration members as such; NaN and infinities survive.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from quantbench.core.cache import write_atomically
from quantbench.core.errors import QuantbenchError
from quantbench.core.outside import parse_json, read_text
from quantbench.core.signals import Found

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")
_SHOWN = 3


def write(path: Path, value: object) -> None:
    """Write a dataclass, or a dict of them, atomically; QuantbenchError if a field holds a value of another type."""
    text = json.dumps(plain(value))
    made(json.loads(text), type(value), str(path))  # so that a wrong value fails in the writer, not in the reader
    write_atomically(path, text)


def read(path: Path, kind: type[T]) -> T:
    """The ``kind`` that was written there; QuantbenchError if the file holds anything else."""
    try:
        body = parse_json(read_text(path))
    except OSError as error:
        raise QuantbenchError(f"{path} cannot be read ({error.strerror}); start again") from error
    except ValueError as error:
        raise QuantbenchError(f"{path} is not JSON ({error}); remove it and start again") from error
    return made(body, kind, str(path))


def plain(value: object) -> Any:
    """Dicts, lists and scalars, as JSON has them."""
    return converter().unstructure(value)


def made(body: object, kind: type[T], name: str) -> T:
    """A ``kind`` built from JSON values; QuantbenchError that says which fields of ``name`` are missing, unknown or wrong."""
    from cattrs import transform_error

    try:
        return converter().structure(body, kind)
    except Exception as error:
        faults = transform_error(error, "it")
        why = "; ".join(faults[:_SHOWN]) + (f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else "")
        what = getattr(kind, "__name__", str(kind))
        raise QuantbenchError(f"{name} does not hold a {what} of this version ({why}); make it again") from error


@cache
def converter() -> Converter:
    """The one converter. Most commands never need it, so cattrs is imported only here."""
    from cattrs import Converter

    made = Converter(forbid_extra_keys=True)
    for base in (str, int, float, bool):
        made.register_structure_hook(base, _scalar(base))
    made.register_structure_hook_factory(_is_tuple, lambda kind: _tuple(kind, made))
    made.register_structure_hook(Found, lambda body, _: _held(body, dict, str))
    return made


def _scalar(base: type) -> Callable[[object, Any], object]:
    """Takes only a scalar of that type, where cattrs would convert anything: a dict to a str, a float to an int."""
    wanted = (int, float) if base is float else (base,)

    def take(body: object, kind: Any) -> object:
        if type(body) not in wanted:
            raise TypeError(type(body).__name__)
        return body if kind is base else kind(body)  # an enumeration is dispatched by its base

    return take


def _is_tuple(kind: Any) -> bool:
    """Whether it is a tuple of any length; cattrs already checks the length of a fixed one."""
    return get_args(kind)[-1:] == (...,)


def _tuple(kind: Any, converter: Converter) -> Callable[[object, Any], object]:
    """Takes only a list, where cattrs would also take the keys of a dict or the characters of a string."""
    from cattrs.cols import homogenous_tuple_structure_factory

    take = homogenous_tuple_structure_factory(kind, converter)
    return lambda body, _: take(_held(body, list, tuple), kind)


def _held(body: object, *kinds: type) -> Any:
    if not isinstance(body, kinds):
        raise TypeError(type(body).__name__)
    return body
