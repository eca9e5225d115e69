"""What a comparison looks at: timed figures, and figures that are the same each time they are measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from quantbench.core.errors import UsageError, unknown_name
from quantbench.core.record import Column, Gate
from quantbench.metrics import all_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A speed: ``raw`` as measured and ``ratio`` to the anchor of the same process. ``inverse``: raw is a time."""

    name: str
    raw: str
    ratio: str
    unit: str
    inverse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """A column judged by threshold: a change counts above ``least`` (relative) and above ``floor`` (in its unit).

    ``slicing`` names the column that holds the row's own floor: how much the figure depends on the length of forward passes.
    """

    column: str
    unit: str
    better: Literal["lower", "higher"]
    least: float
    floor: float = 0.0
    slicing: str = ""


@cache
def timed() -> tuple[Timed, ...]:
    """The speeds that comparisons judge: raw figures that have a ratio to the anchor."""
    return tuple(
        Timed(
            name=column.gate.name or column.name, raw=column.name, ratio=column.gate.ratio, unit=column.unit,
            inverse=column.better == "lower",
        )
        for column in all_columns()
        if column.gate and column.gate.ratio
    )  # fmt: skip


@cache
def exact() -> tuple[Exact, ...]:
    """The columns that comparisons judge by a threshold by default."""
    return tuple(_exact(column) for column in all_columns() if column.gate and not column.gate.ratio)


def _exact(column: Column) -> Exact:
    assert column.better, f"column {column.name!r} has a gate and no direction"
    gate = column.gate or Gate()
    return Exact(
        column=column.name, unit=column.unit, better=column.better, least=gate.least, floor=gate.floor, slicing=gate.slicing
    )


def exact_of(columns: Iterable[str]) -> list[Exact]:
    """The further columns to judge: those of ``columns`` that are not judged by default.

    UsageError for a column that does not exist or has no direction.
    """
    known = {each.name for each in timed()} | {each.column for each in exact()}
    offered = {each.name: each for each in all_columns() if each.better and each.kind in ("float", "int")}
    found = []
    for name in columns:
        if name in known:
            continue
        if name not in offered:
            raise unknown_name("figure or column with a direction", name, [*known, *offered])
        found.append(_exact(offered[name]))
    return found


def parse_threshold(text: str) -> tuple[str, float]:
    """``METRIC=PCT`` as a name and a relative change. UsageError for anything else."""
    name, _, percent = text.partition("=")
    try:
        value = float(percent.strip().removesuffix("%"))
    except ValueError:
        value = -1.0
    if not name.strip() or not 0 <= value < float("inf"):
        raise UsageError(f"threshold {text!r} is not METRIC=PCT; write for example decode=5 or kld_mean=10")
    return name.strip(), value / 100
