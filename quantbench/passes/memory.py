"""The memory pass: the kernel's high-water mark of resident memory, reset before a round of generation.

``ru_maxrss`` is inherited through exec and would count the parent; VmHWM, reset through clear_refs, does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from quantbench.errors import UnsupportedError
from quantbench.methods import LoadedModel
from quantbench.passes.latency import timed_answer
from quantbench.trace import PeakMemory

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"
_FIELDS = ("VmHWM", "VmRSS", "RssAnon", "RssFile")


def resident() -> dict[str, int]:
    """VmHWM, VmRSS, RssAnon and RssFile of this process in bytes; UnsupportedError where there is no /proc."""
    if not _STATUS.exists():
        raise UnsupportedError("peak memory is read from /proc/self/status, which this system lacks; measure on Linux")
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _STATUS.read_text(), flags=re.MULTILINE))
    return {name: int(found[name]) * 1024 for name in _FIELDS}


def reset_high_water() -> None:
    """Set VmHWM back to what is resident now."""
    _CLEAR_REFS.write_text(_RESET_HIGH_WATER)


def measure_peak(
    model: LoadedModel, prompts: Sequence[Sequence[int]], length: int, loading: tuple[int, int], device: str
) -> PeakMemory:
    """Peak memory of answering the longest prompt, whose cache is the largest; ``loading`` as for ``peak_during``."""
    longest = max(prompts, key=len)
    return peak_during(lambda: timed_answer(model, 0, longest, length), loading, device)


def peak_during(work: Callable[[], object], loading: tuple[int, int], device: str) -> PeakMemory:
    """Peak memory of ``work``.

    ``loading`` is what was resident before the model was opened, and the high-water mark while it was.
    """
    reset_high_water()
    cuda = device.startswith("cuda")
    if cuda:
        import torch

        torch.cuda.reset_peak_memory_stats()
    work()
    after = resident()
    return PeakMemory(
        peak_rss_bytes=after["VmHWM"],
        start_rss_bytes=loading[0],
        load_peak_rss_bytes=loading[1],
        rss_anon_bytes=after["RssAnon"],
        rss_file_bytes=after["RssFile"],
        device_allocated_bytes=torch.cuda.max_memory_allocated() if cuda else None,
        device_reserved_bytes=torch.cuda.max_memory_reserved() if cuda else None,
    )
