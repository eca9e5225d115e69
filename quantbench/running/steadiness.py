"""Disturbances that only a whole run shows: a row whose anchor was slower than the same work in other rows.

The anchor does the same work in the process of every row of a runtime, and the reference is its own anchor. So an anchor that
ran slower than in the other rows, or a variant that was slower than itself as the anchor, means that something slowed the
machine: other work that the kernel's counters missed, a lower clock, another guest on the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import median

from quantbench.core.record import Record, Status
from quantbench.core.scenario import Scenario
from quantbench.core.statistics import mad

LEAST = 0.3
"""Processes normally differ by less than this: the anchors of 26 on two quiet cores were within 25 % of their median."""

_SPREADS = 5.0
"""A slow anchor must also be this many median absolute deviations (x 1.4826) below the median of its rows."""

_OTHERS = 3
"""The least number of other rows to compare an anchor with."""


def unsteady(records: Iterable[Record]) -> Mapping[Scenario, str]:
    """Scenarios that unseen other work must have disturbed, each with the reason in words."""
    timed = [each for each in records if each.status is Status.OK and each.values.get("disturbed") is False]
    found: dict[Scenario, str] = {}
    for rows in _alike(timed):
        logs = {scenario: math.log(rate) for scenario, rate in rows.items()}
        middle = median(logs.values())
        bound = max(_least(), _SPREADS * mad(list(logs.values())))
        if len(logs) > _OTHERS:
            slow = {scenario: math.exp(each - middle) for scenario, each in logs.items() if middle - each > bound}
            found |= {each: f"its anchor ran at {share:.0%} of its speed beside other variants" for each, share in slow.items()}
    return found | {record.scenario: why for record in timed if (why := _unlike_itself(record))}


def _alike(records: Iterable[Record]) -> Iterable[Mapping[Scenario, float]]:
    """Decode speeds of anchors that did the same work, in tokens per second."""
    groups: dict[tuple[str, Scenario], dict[Scenario, float]] = {}
    for record in records:
        if rate := _number(record, "anchor_decode_tps"):
            # The reference's scenario has all of a row's settings except its variant and repeat.
            same = replace(record.scenario.reference(), batch=record.scenario.batch)
            groups.setdefault((record.facts.get("anchor", ""), same), {})[record.scenario] = rate
    return groups.values()


def _unlike_itself(record: Record) -> str:
    """Where the variant is its own anchor: its ratio to itself in words, if that is not near 1."""
    ratio, low, high = (_number(record, f"decode_ratio{end}") for end in ("", "_low", "_high"))
    if record.facts.get("anchor") != record.scenario.variant.name or not ratio:
        return ""
    explained = (low or ratio) <= 1 <= (high or ratio)  # by the noise of its own rounds
    return "" if explained or abs(math.log(ratio)) < _least() else f"it ran at {ratio:.0%} of its own speed as anchor"


def _least() -> float:
    """LEAST as a log ratio."""
    return -math.log1p(-LEAST)


def _number(record: Record, name: str) -> float | None:
    """A figure above 0; None where there is none."""
    value = record.values.get(name)
    return float(value) if isinstance(value, int | float) and 0 < value < math.inf else None
