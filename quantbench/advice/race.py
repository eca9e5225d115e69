"""Which variants a short round has put out of the running, so that only the others are measured at length.

Out is only who cannot be the pick of ``advice.decision`` whatever the longer round finds, as long as that lies inside the
intervals of the short one (its mean KLDs all times one factor of at most ``KLD_SCALE``, as other prompts come out higher or
lower together). A bare mean puts nobody out. What is safe follows from the rule, which picks, of those within the limits, the
smallest that none is surely faster than, and then what *dominates* that, if anything does:

* A limit is surely broken: KLD, weights, speed. Who breaks a limit plays no part in the rule.
* One that is surely within the limits is surely faster, *and* it cannot dominate anything: every other that is as large as it,
  or larger, is surely closer to the reference, or surely faster. To be slower is not enough: the rule still picks a slower
  variant in place of one that is larger, further away and not surely faster.
* One that is surely within the limits is better or equal in all three: bytes, KLD and speed. It then takes every part in the
  rule that the other could have: it is surely faster than whatever the other is surely faster than.
* It is larger than one that is surely within the limits and that none can turn out surely faster than: the rule begins with
  that one or a smaller, and what dominates a variant is never larger. Such a larger one stays if it may turn out surely faster
  than a smaller one that only it would put out.

Without the variants that are out, the rule picks the same as with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantbench.advice.decision import Limits
from quantbench.advice.pareto import PROCESS_SPREAD, Candidate
from quantbench.core.units import format_limit, short, significant

KLD_SCALE = 1.5
"""How far the mean KLD over one prompt set may be from that over another. On the canary ``ten`` and ``mixed`` differ by up to
8 % (bench/harness/README.md, the default prompts beside a long text); other models may differ by more."""


def out(candidates: Sequence[Candidate], limits: Limits) -> Mapping[str, str]:
    """Names of those that cannot be picked, each with the reason in words; ``candidates`` are all that are in the race."""
    found = {each.name: why for each in candidates if (why := too_much(each, limits) or _too_slow(each, limits))}
    racing = [each for each in candidates if each.name not in found]
    sure = [each for each in racing if _surely_within(each, limits)]
    for each in racing:
        faster = next((other for other in sure if other.surely_faster(each)), None)
        better = next((other for other in sure if _surely_no_worse(other, each)), None)
        if better:
            found[each.name] = f"surely no better than {better.name} in size, KLD or speed"
        elif faster and not any(_may_dominate(each, other) for other in racing if other is not each):
            found[each.name] = f"surely slower than {faster.name}"
    return {**found, **_too_large([each for each in racing if each.name not in found], limits)}


def of_any_process(measured: Candidate) -> Candidate:
    """The figures that the process of a later round may find: its speed may differ by ``PROCESS_SPREAD`` more."""
    speeds = measured.tps_interval
    if speeds is None:
        return measured
    low, high = speeds
    return replace(measured, tps_low=low / (1 + PROCESS_SPREAD), tps_high=high * (1 + PROCESS_SPREAD))


def _too_large(racing: Sequence[Candidate], limits: Limits) -> Mapping[str, str]:
    """Those that are larger than one with which the rule can surely begin, and that put out nothing smaller."""
    sure = sorted((each for each in racing if _surely_within(each, limits)), key=lambda each: each.weight_bytes)
    for small in sure:
        if any(_may_be_faster(other, small) for other in racing if other is not small):
            continue
        ahead = [each for each in racing if each.weight_bytes <= small.weight_bytes]
        open_ = [each for each in ahead if not any(other.surely_faster(each) for other in sure if other in ahead)]
        behind = (each for each in racing if each.weight_bytes > small.weight_bytes)
        why = f"larger than {small.name}, and surely not faster"
        return {each.name: why for each in behind if not any(_may_be_faster(each, other) for other in open_)}
    return {}


def too_much(candidate: Candidate, limits: Limits) -> str:
    """Why it surely breaks the limit of the KLD or of the weights, in words; empty where it may keep them.

    Speeds play no part, so other work beside the measurement cannot change it.
    """
    if limits.memory_bytes is not None and candidate.weight_bytes > limits.memory_bytes:
        return f"needs more than {format_limit(limits.memory_bytes)}"
    return f"KLD surely above {short(limits.max_kld)}" if _kld(candidate)[0] > limits.max_kld * KLD_SCALE else ""


def _too_slow(candidate: Candidate, limits: Limits) -> str:
    speeds = candidate.tps_interval
    if limits.min_tps is None or speeds is None or speeds[1] * (1 + PROCESS_SPREAD) >= limits.min_tps:
        return ""
    return f"surely slower than {significant(limits.min_tps)} tokens/s"


def _surely_within(candidate: Candidate, limits: Limits) -> bool:
    """Whether it keeps every limit anywhere in its intervals."""
    fits = limits.memory_bytes is None or candidate.need_bytes <= limits.memory_bytes
    close = _kld(candidate)[1] * KLD_SCALE <= limits.max_kld
    speeds = candidate.tps_interval
    fast = limits.min_tps is None or (speeds is not None and speeds[0] >= limits.min_tps * (1 + PROCESS_SPREAD))
    return fits and close and fast


def _surely_no_worse(one: Candidate, other: Candidate) -> bool:
    """Whether ``one`` is no larger, no further away and no slower anywhere in the intervals, and not the same otherwise."""
    mine, theirs = one.tps_interval, other.tps_interval
    if mine is None or theirs is None or mine[0] < theirs[1]:
        return False
    furthest, closest = _kld(one)[1], _kld(other)[0]
    smaller, closer = one.weight_bytes < other.weight_bytes, furthest < closest
    return (smaller or closer) and one.weight_bytes <= other.weight_bytes and furthest <= closest


def _may_be_faster(one: Candidate, other: Candidate) -> bool:
    """Whether ``one`` may turn out to be surely faster than ``other``."""
    mine, theirs = one.tps_interval, other.tps_interval
    return mine is None or theirs is None or mine[1] > theirs[0] * (1 + one.spread(other))


def _may_dominate(one: Candidate, other: Candidate) -> bool:
    """Whether ``one`` may be no larger and no further away than ``other``, which is not surely faster."""
    placed = one.weight_bytes <= other.weight_bytes and _kld(one)[0] <= _kld(other)[1]
    return placed and not other.surely_faster(one)


def _kld(candidate: Candidate) -> tuple[float, float]:
    """Ends of the 95 % interval of the mean KLD in nats; anything is possible where it has none."""
    low, high = candidate.kld_low, candidate.kld_high
    return (0.0, math.inf) if low is None or high is None else (low, high)
