"""What else the machine did while a row was timed, and whether that disturbed it."""

from __future__ import annotations

from collections.abc import Mapping

from quantbench.core.record import Column, Missing, Value
from quantbench.core.trace import OtherWork, Reference, Trace
from quantbench.metrics import metric

_NOT_TIMED = "nothing was timed in this process"

# On two cores a quiet machine showed 0 to 0.033 (a tick or two of 10 ms in 0.3 s), one other busy process 0.40 to 0.55; a
# matrix product of torch was then 2 to 60 times slower. So what counts is not far from any bound between these. One process
# that works beside as many threads as there are CPUs slows all of them, however many they are: the bound is a part of one CPU,
# down to what daemons of a large machine take.
_OTHERS_CPUS = 0.15
_OTHERS_LEAST = 0.02
_STEAL = 0.05
_GPU = 0.05
RESTED = "threads did not spin where they waited, so as to give way"
_TICKS = 3
"""As many ticks are noise: work of the CPUs is counted as ticks come, that of processes in full ticks."""


@metric(
    Column(
        "others_cpu_share", "ratio", doc="CPU time that other processes took during the timed rounds, of this process's CPUs",
        formula="(busy - own) / (seconds x CPUs); own is the run's first process and all below it",
        source="Linux /proc/stat, /proc/PID/stat",
    ),
    Column(
        "steal_share", "ratio", doc="CPU time that the host gave to other guests during the timed rounds",
        formula="steal / (seconds x CPUs)", source="Linux /proc/stat",
    ),
    Column(
        "others_gpu_share", "ratio", doc="how busy other processes kept the GPU in the timed rounds; of several the busiest",
        formula="mean over looks after each round of the sum of their smUtil", source="NVML nvmlDeviceGetProcessUtilization",
    ),
    Column(
        "disturbed", "", kind="bool", doc="whether other work slowed what was timed: its speeds are not compared with others",
        formula="others_cpu_share > max(0.02, 0.15 / CPUs), steal_share > 0.05, others_gpu_share > 0.05 or threads rested",
        source="quantbench",
    ),
    Column(
        "disturbance", "", kind="string", doc="by what it was disturbed; empty where it was not",
        formula="the bounds of disturbed that were passed, in words",
        source="quantbench",
    ),
)  # fmt: skip
def other_work(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Work of others beside the timed rounds"""
    seen = trace.other_work
    if seen is None:
        none = Missing(trace.absent.get("other_work", trace.absent.get("rounds", _NOT_TIMED)))
        return dict.fromkeys(("others_cpu_share", "steal_share", "others_gpu_share", "disturbed", "disturbance"), none)
    shares = {
        "others_cpu_share": _or(seen.others_cpu, seen, "others_cpu"),
        "steal_share": _or(seen.steal, seen, "steal"),
        "others_gpu_share": _or(seen.others_gpu, seen, "others_gpu"),
    }
    if all(isinstance(each, Missing) for each in shares.values()):
        return {**shares, "disturbed": shares["others_cpu_share"], "disturbance": shares["others_cpu_share"]}
    why = disturbance(seen)
    return {**shares, "disturbed": bool(why), "disturbance": why}


def disturbance(seen: OtherWork) -> str:
    """What other work was enough to slow what is timed, in words; empty where there was none."""
    ticks = _TICKS * seen.tick_share
    most = max(_OTHERS_LEAST, _OTHERS_CPUS / max(seen.cpus, 1), ticks)
    found = (
        (seen.others_cpu, most, "other processes took {:.0%} of the CPU time"),
        (seen.steal, max(_STEAL, ticks), "other guests of the host took {:.0%} of the CPU time"),
        (seen.others_gpu, _GPU, "other processes kept the GPU busy {:.0%} of the time"),
    )
    said = [words.format(share) for share, bound, words in found if share is not None and share > bound]
    return " and ".join([*said, *([RESTED] if seen.rested else [])])


def _or(share: float | None, seen: OtherWork, name: str) -> Value:
    return Missing(seen.absent.get(name, _NOT_TIMED)) if share is None else share
