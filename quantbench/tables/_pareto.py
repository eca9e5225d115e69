"""Candidates, the Pareto front over them, and the pick. Arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A measured variant. ``weight_bytes`` as loaded, ``need_bytes`` at most while running; rates in tokens/s; KLD in nats."""

    name: str
    weight_bytes: float
    need_bytes: float
    bits_per_weight: float | None
    tps: float
    tps_low: float | None
    tps_high: float | None
    kld: float
    kld_low: float | None
    kld_high: float | None

    def tps_overlaps(self, other: Candidate) -> bool:
        """Whether the 95 % intervals of decode throughput overlap; a rate without an interval is a point."""
        low, high = self._interval()
        other_low, other_high = other._interval()
        return low <= other_high and other_low <= high

    @property
    def tps_margin(self) -> float:
        """Half the width of the interval of decode throughput, in tokens/s."""
        low, high = self._interval()
        return (high - low) / 2

    def _interval(self) -> tuple[float, float]:
        return (
            self.tps if self.tps_low is None else self.tps_low,
            self.tps if self.tps_high is None else self.tps_high,
        )


def dominates(one: Candidate, other: Candidate) -> bool:
    """Whether ``one`` is no larger, no slower and no further from the reference than ``other``, and better in one of them."""
    pairs = [(one.weight_bytes, other.weight_bytes), (other.tps, one.tps), (one.kld, other.kld)]
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other dominates."""
    return [each for each in candidates if not any(dominates(other, each) for other in candidates)]


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """The fastest on the front; of those whose interval overlaps with the fastest's, the one with the lowest KLD."""
    best = front(candidates)
    if not best:
        return None
    fastest = max(best, key=lambda each: each.tps)
    tied = [each for each in best if each.tps_overlaps(fastest)]
    return min(tied, key=lambda each: (each.kld, each.weight_bytes, -each.tps, each.name))
