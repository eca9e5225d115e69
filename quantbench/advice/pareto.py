"""Candidates, which of them are known to be faster, and the pick. Arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PROCESS_SPREAD = 0.10
"""Speeds measured in one process each surely differ only beyond this, on top of their intervals.

An interval comes from the rounds of one process, and processes of one variant differ by more: decode speeds have a standard
deviation of 3 to 7 % on an idle machine (bench/harness/README.md, the decision rule), and the difference of two of them 1.4
times that. Where a variant was measured in several processes, its interval spans them all and includes that already.
"""

Place = tuple[float, float]
"""Bytes of the weights, and KLD in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A measured variant. ``weight_bytes`` as loaded, ``need_bytes`` at most while running; rates in tokens/s; KLD in nats.

    ``tps_ratio`` is its speed over the reference's, from rounds that ``alternated`` in one process or from two processes.
    ``processes`` counts the processes measured; ``disturbed`` says that it was measured beside other work, so that its speed
    must not be compared with others.
    """

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
    kld_se: float | None = None
    tps_ratio: float | None = None
    alternated: bool = False
    processes: int = 1
    disturbed: bool = False

    @property
    def place(self) -> Place:
        """Where it lies in size and KLD."""
        return self.weight_bytes, self.kld

    @property
    def tps_interval(self) -> tuple[float, float] | None:
        """Ends of the 95 % interval of decode throughput; None where the speed cannot be ordered."""
        if self.disturbed or self.tps_low is None or self.tps_high is None:
            return None
        return self.tps_low, self.tps_high

    def surely_faster(self, other: Candidate) -> bool:
        """Whether its interval of decode throughput lies above the other's, by ``spread``. A strict order.

        Nothing is surely faster without an interval, nor when it was measured beside other work.
        """
        mine, theirs = self.tps_interval, other.tps_interval
        return bool(mine and theirs) and mine[0] > theirs[1] * (1 + self.spread(other))  # type: ignore[index]

    def spread(self, other: Candidate) -> float:
        """How far the speeds of two processes may differ beyond their intervals; 0 where both had several processes."""
        return 0.0 if min(self.processes, other.processes) > 1 else PROCESS_SPREAD


def dominates(one: Candidate, other: Candidate) -> bool:
    """Whether ``one`` is no larger, no further from the reference and not surely slower, and better in one of them.

    There are no cycles: size and KLD would be equal all round a cycle, and being surely faster is a strict order.
    """
    if other.surely_faster(one):
        return False
    return beats(one.place, other.place) or (one.surely_faster(other) and _no_worse(one.place, other.place))


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """The smallest, then the lowest in KLD, of those that none is surely faster than; or what dominates that, if anything does.

    A tie in speed goes to fewer bytes, not to the lower KLD: fewer bytes are usually faster as well, so the pick stays the same
    when intervals overlap in one run and not in the next. The limit takes care of the KLD.
    """
    fastest = [each for each in candidates if not any(other.surely_faster(each) for other in candidates)]
    pick = min(fastest, key=_order, default=None)
    while pick and (better := [each for each in candidates if dominates(each, pick)]):
        pick = min(better, key=_order)
    return pick


def possible(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The possible picks on a quiet machine, in their order; just one where size and KLD decide without a disturbed speed.

    A disturbed variant may have any speed, but one that is no smaller and no closer than the pick does not count against it.
    """
    pick = choose(candidates)
    if pick is None:
        return []
    quiet = [each for each in candidates if not each.disturbed]
    found = [pick, choose([each for each in quiet if not _no_worse(pick.place, each.place)] if pick.disturbed else quiet)]
    found += [each for each in candidates if each.disturbed and not _no_worse(pick.place, each.place)]
    names = {each.name for each in found if each}
    return [each for each in candidates if each.name in names]


def beats(one: Place, other: Place) -> bool:
    """Whether ``one`` is no larger, no further from the reference, and better in one of them. What none beats is the front."""
    return one != other and _no_worse(one, other)


def _no_worse(one: Place, other: Place) -> bool:
    return all(mine <= its for mine, its in zip(one, other, strict=True))


def _order(candidate: Candidate) -> tuple[float, float, float, str]:
    low, _ = candidate.tps_interval or (0.0, 0.0)
    return candidate.weight_bytes, candidate.kld, -low, candidate.name
