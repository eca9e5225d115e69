"""The measured variants of a group as points of its charts: figures in base units, and their marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantbench.advice.pareto import beats
from quantbench.core.text import visible
from quantbench.core.units import format_bytes, short, with_interval
from quantbench.report.charts.look import nominal
from quantbench.tables.fields import BESIDE_OTHER_WORK
from quantbench.tables.table import Cell

if TYPE_CHECKING:
    from quantbench.advice.decision import Choice
    from quantbench.results.rows import Group, Row

_TOOLTIP = {"variant": "Variant", "weights": "Weights", "nats": "KLD, nats", "decode": "Decode, tokens/s"}
"""What a tooltip says about a point: keys and titles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measured variant: figures in bytes, nats and tokens/s, None where not measured; ``role`` is its part in the decision.

    Its speed was ``disturbed`` where it was measured beside other work.
    """

    name: str
    method: str
    role: str
    weight_bytes: float | None
    kld: float | None
    kld_low: float | None
    kld_high: float | None
    tps: float | None
    tps_low: float | None
    tps_high: float | None
    disturbed: bool = False

    @property
    def mark(self) -> str:
        """The mark behind its speed; empty where nothing disturbed it."""
        return BESIDE_OTHER_WORK if self.disturbed else ""

    @property
    def texts(self) -> dict[str, str]:
        """What a tooltip says, by the keys of _TOOLTIP."""
        return {
            "variant": visible(self.name + (f" ({self.role})" if self.role else "")),
            "weights": Cell.of(self.weight_bytes, format_bytes).shown,
            "nats": Cell.of(self.kld, lambda nats: with_interval(nats, self.kld_low, self.kld_high, show=short)).shown,
            "decode": Cell.of(self.tps, lambda rate: with_interval(rate, self.tps_low, self.tps_high) + self.mark).shown,
        }


def points(group: Group, choice: Choice | None) -> list[Point]:
    """The measured rows of a group, except the control."""
    return [_point(row, _role(row, group, choice)) for row in group.rows if row.ok and not row.flag("control")]


def on_front(variants: Sequence[Point]) -> set[str]:
    """Names of the points that no other beats in both size and KLD; only of those with both figures."""
    known = [
        (each.name, (each.weight_bytes, each.kld))
        for each in variants
        if each.weight_bytes is not None and each.kld is not None
    ]
    return {name for name, here in known if not any(beats(there, here) for _, there in known)}


def tooltip() -> list[dict[str, Any]]:
    """What a chart says about a point."""
    return [nominal(key, title=title) for key, title in _TOOLTIP.items()]


def _point(row: Row, role: str) -> Point:
    return Point(
        name=row.label,
        method=row.text("method"),
        role=role,
        weight_bytes=row.number("weight_bytes"),
        kld=row.number("kld_mean"),
        kld_low=row.number("kld_mean_low"),
        kld_high=row.number("kld_mean_high"),
        tps=row.number("decode_tps"),
        tps_low=row.number("decode_tps_low"),
        tps_high=row.number("decode_tps_high"),
        disturbed=row.flag("disturbed"),
    )


def _role(row: Row, group: Group, choice: Choice | None) -> str:
    if choice and choice.pick and choice.pick.name == row.label:
        return "pick"
    if choice and choice.runner_up and choice.runner_up.name == row.label:
        return "runner-up"
    return "reference" if row.variant == group.reference else ""
