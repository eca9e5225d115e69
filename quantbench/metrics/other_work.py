"""What else the machine did while a row was timed, and whether that disturbed it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace

from quantbench.core.other_work import OtherWork, OtherWorkWatch, disturbance
from quantbench.core.record import Column, Missing, Value
from quantbench.core.signals import Watched
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric

_NOT_TIMED = "nothing was timed in this process"

@contextmanager
def watch_other_work(during: Watched) -> Iterator[None]:
    """Read counters before the first round and after the last; a GPU's after each round."""
    watch = OtherWorkWatch(during.root, during.device, own_server=during.own_server)
    during.after_round(watch.look)
    yield
    during.tell(asdict(replace(watch.ended(), rested=during.rested())))


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
        "disturbance", "", kind="string", doc="what disturbed it; empty where nothing did",
        formula="the bounds of disturbed that were exceeded, in words",
        source="quantbench",
    ),
    signal=watch_other_work,
)  # fmt: skip
def other_work(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Work of other processes during the timed rounds"""
    told = trace.signals.get("other_work", trace.absent.get("rounds", _NOT_TIMED))
    if isinstance(told, str):
        names = ("others_cpu_share", "steal_share", "others_gpu_share", "disturbed", "disturbance")
        return dict.fromkeys(names, Missing(told))
    seen = OtherWork(**told)
    shares = {
        "others_cpu_share": _or(seen.others_cpu, seen, "others_cpu"),
        "steal_share": _or(seen.steal, seen, "steal"),
        "others_gpu_share": _or(seen.others_gpu, seen, "others_gpu"),
    }
    if all(isinstance(each, Missing) for each in shares.values()):
        return {**shares, "disturbed": shares["others_cpu_share"], "disturbance": shares["others_cpu_share"]}
    why = disturbance(seen)
    return {**shares, "disturbed": bool(why), "disturbance": why}


def _or(share: float | None, seen: OtherWork, name: str) -> Value:
    return Missing(seen.absent.get(name, _NOT_TIMED)) if share is None else share
