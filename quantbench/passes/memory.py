"""The memory pass: the kernel's high-water mark of resident memory, reset before a round of generation.

``ru_maxrss`` is inherited through exec and would count the parent; VmHWM, reset through clear_refs, does not. The kernel keeps
no such mark of the anonymous and the file-backed part alone, so their split is sampled: nothing is timed in this pass.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from quantbench.errors import UnsupportedError
from quantbench.methods import LoadedModel
from quantbench.passes.latency import timed_answer
from quantbench.trace import PeakMemory

SAMPLE_S = 0.002
"""The split of resident memory is read once in so many seconds."""

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"
_FIELDS = ("VmHWM", "VmRSS", "RssAnon", "RssFile")


def resident() -> dict[str, int]:
    """VmHWM, VmRSS, RssAnon and RssFile of this process in bytes; UnsupportedError where the kernel does not tell them."""
    text = _STATUS.read_text() if _STATUS.exists() else ""
    found = {name: int(count) * 1024 for name, count in re.findall(r"^(\w+):\s+(\d+) kB$", text, flags=re.MULTILINE)}
    if lacking := [name for name in _FIELDS if name not in found]:
        what = f"{', '.join(lacking)} of /proc/self/status" if text else "/proc/self/status"
        raise UnsupportedError(f"peak memory is read from {what}, which this system lacks; measure on Linux 4.5 or newer")
    return {name: found[name] for name in _FIELDS}


def reset_high_water() -> None:
    """Give freed memory back to the kernel, then set VmHWM to what is resident now; UnsupportedError where that cannot be done.

    Of what was freed, glibc keeps up to 64 MiB, which would count as resident now and hide as much of what comes next.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc has it
        trim(0)
    try:
        _CLEAR_REFS.write_text(_RESET_HIGH_WATER)
    except OSError as error:
        raise UnsupportedError(
            f"peak memory is reset through /proc/self/clear_refs, which cannot be written here ({error.strerror}); "
            "measure on Linux with a writable /proc"
        ) from error


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
    _reset_device(device)
    with _highest() as highest:
        work()
    allocated, reserved = _device_peaks(device)
    return PeakMemory(
        peak_rss_bytes=resident()["VmHWM"],
        start_rss_bytes=loading[0],
        load_peak_rss_bytes=loading[1],
        rss_anon_bytes=highest["RssAnon"],
        rss_file_bytes=highest["RssFile"],
        device_allocated_bytes=allocated,
        device_reserved_bytes=reserved,
    )


@contextmanager
def _highest() -> Iterator[dict[str, int]]:
    """Samples ``resident()`` until the end; yields what becomes the sample with the most resident memory."""
    highest = resident()
    ended = Event()

    def look() -> None:
        now = resident()
        if now["VmRSS"] >= highest["VmRSS"]:
            highest.update(now)

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            look()

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield highest
    finally:
        ended.set()
        watcher.join()
        look()


def _reset_device(device: str) -> None:
    if cuda := _cuda_in_use(device):
        cuda.reset_peak_memory_stats(device)


def _device_peaks(device: str) -> tuple[int | None, int | None]:
    """What torch's allocator held and reserved at most since the reset; 0 where it was not used, None on the CPU."""
    if device == "cpu":
        return None, None
    cuda = _cuda_in_use(device)
    return (cuda.max_memory_allocated(device), cuda.max_memory_reserved(device)) if cuda else (0, 0)


def _cuda_in_use(device: str) -> Any:
    """``torch.cuda`` if the model is on a GPU and torch has used one: to ask it otherwise would take device memory itself."""
    torch = sys.modules.get("torch") if device != "cpu" else None
    return torch.cuda if torch and torch.cuda.is_initialized() else None
