"""What a comparison looks at: timed figures, and figures that are the same each time they are measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from quantbench.core.errors import UsageError, unknown_name
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

    ``slicing`` is the column with a floor of the row's own: how the figure depends on the length of forward passes.
    """

    column: str
    unit: str
    better: Literal["lower", "higher"]
    least: float
    floor: float = 0.0
    slicing: str = ""


TIMED = (
    Timed(name="decode", raw="itl_s", ratio="itl_ratio", unit="s", inverse=True),
    Timed(name="prefill", raw="prefill_tps", ratio="prefill_ratio", unit="tokens/s"),
    Timed(name="call", raw="call_s", ratio="call_ratio", unit="s", inverse=True),
)

EXACT = (
    Exact(column="weight_bytes", unit="bytes", better="lower", least=0.001),
    Exact(column="weight_bytes_running", unit="bytes", better="lower", least=0.001),
    Exact(column="artifact_bytes", unit="bytes", better="lower", least=0.01),
    Exact(column="kld_mean", unit="nats", better="lower", least=0.05, floor=1e-5, slicing="kld_slicing"),
    Exact(column="top1_agreement", unit="ratio", better="higher", least=0.0, floor=0.005, slicing="top1_slicing"),
    Exact(column="ppl", unit="ppl", better="lower", least=0.005),
)
"""Floors: KLD below 1e-5 nats is rounding of the arithmetic; of top-1 half a point is about one position of the ten prompts."""


def exact_of(columns: Iterable[str]) -> list[Exact]:
    """Further columns to judge, those of ``columns`` that are no figure by themselves, to be given their thresholds.

    UsageError for a column that does not exist or has no direction.
    """
    known = {each.name for each in TIMED} | {each.column for each in EXACT}
    offered = {each.name: each for each in all_columns() if each.better and each.kind in ("float", "int")}
    found = []
    for name in columns:
        if name in known:
            continue
        if name not in offered:
            raise unknown_name("figure or column with a direction", name, [*known, *offered])
        column = offered[name]
        assert column.better
        found.append(Exact(column=name, unit=column.unit, better=column.better, least=0.0))
    return found


def parse_threshold(text: str) -> tuple[str, float]:
    """``METRIC=PCT`` as a name and a relative change. UsageError for anything else."""
    name, _, percent = text.partition("=")
    try:
        value = float(percent.strip().removesuffix("%"))
    except ValueError:
        value = -1.0
    if not name.strip() or not 0 <= value < float("inf"):
        raise UsageError(f"threshold {text!r} is no METRIC=PCT; write for example decode=5 or kld_mean=10")
    return name.strip(), value / 100
