"""The memory pass: the kernel's high-water mark of resident memory, reset before an answer is generated.

``ru_maxrss`` is inherited through exec and would count the parent; VmHWM, reset through clear_refs, does not. The kernel keeps
no such mark for the anonymous and file-backed parts, so their split is sampled, which is harmless as nothing is timed here. On
a GPU torch's allocator keeps its own marks; the driver's figures for the process and the boards are sampled too.

Some kernels lack a part of this: gVisor's status has VmRSS alone, and one built without CONFIG_PROC_PAGE_MONITOR no clear_refs.
Then those figures are missing, with the reason, and all others are measured.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

from quantbench.core.boards import Boards
from quantbench.core.trace import PeakMemory
from quantbench.measuring.passes.device_context import DeviceContext, make_context
from quantbench.measuring.passes.latency import timed_answer
from quantbench.methods import LoadedModel

SAMPLE_S = 0.002
"""Seconds between two samples of the split of resident memory."""

_UNLISTED = "the driver lists no memory for this process: in a container it may know the process by another number"

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"
_LINE = re.compile(r"^(VmHWM|VmRSS|RssAnon|RssFile):\s+(\d+) kB$", flags=re.MULTILINE)
_READ_FROM = {
    "peak_rss_bytes": ("VmHWM",), "load_peak_rss_bytes": ("VmHWM",), "start_rss_bytes": ("VmRSS",),
    "rss_anon_bytes": ("VmRSS", "RssAnon"), "rss_file_bytes": ("VmRSS", "RssFile"),
}  # fmt: skip
"""The lines of /proc/self/status that a figure is made of, by the field of PeakMemory."""

_AFTER_RESET = ("peak_rss_bytes", "load_peak_rss_bytes")
"""Figures that say nothing where the high-water mark cannot be reset."""


def resident() -> dict[str, int]:
    """VmHWM, VmRSS, RssAnon and RssFile of this process in bytes, without those that the kernel does not report."""
    text = STATUS.read_text() if STATUS.exists() else ""
    return {name: int(count) * 1024 for name, count in _LINE.findall(text)}


def reset_high_water() -> str:
    """Give freed memory back to the kernel, then set VmHWM to what is resident now; says why where that is impossible.

    glibc keeps up to 64 MiB of freed memory, which would count as resident now and hide as much of the later growth.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # only glibc has it
        trim(0)
    try:
        CLEAR_REFS.write_text(_RESET_HIGH_WATER)
    except OSError as error:
        return (
            f"peak memory is reset through /proc/self/clear_refs, which cannot be written here ({error.strerror}); "
            "measure on Linux with a writable /proc"
        )
    return ""


def reset_device(device: str) -> None:
    """Empty the cache of torch's allocator, then reset its marks to what it holds now."""
    if cuda := _cuda_in_use(device):
        cuda.empty_cache()
        for number in _numbers(cuda, device):
            cuda.reset_peak_memory_stats(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Memory in bytes before a model was opened, and the peak while opening it (None until ``ended()``).

    Host memory is None where the kernel does not report it; ``unreset`` says why its high-water mark could not be reset.
    ``boards`` are those of the device, or why NVML cannot read them; ``context_bytes`` is what CUDA's context took on them, or
    why that is unknown; ``stranger`` means that the driver lists another process under this one's number.
    """

    device: str
    start_rss_bytes: int | None
    unreset: str
    peak_rss_bytes: int | None = None
    boards: Boards | str
    start_used_bytes: int = 0
    context_bytes: int | str
    stranger: bool = False
    device_allocated_bytes: int | None = None

    def ended(self) -> Loading:
        """The same, after the model was opened."""
        allocated, _ = _device_peaks(self.device)
        peak = None if self.unreset else resident().get("VmHWM")
        return replace(self, peak_rss_bytes=peak, device_allocated_bytes=allocated)


def before_loading(device: str, context: DeviceContext | None = None) -> Loading:
    """Release cached memory and read what is in use, right before a model is opened on ``device``.

    ``context`` is what ``make_context`` found before libraries were imported; without it CUDA's context is made now. NVML is
    opened first, since its library takes memory on the host (none on the device).
    """
    made = context or make_context(device)
    boards, used = made.boards, 0
    reset_device(device)
    if isinstance(boards, Boards):
        try:
            used = boards.used_bytes()
        except OSError as error:
            boards = str(error)
    unreset = reset_high_water()
    return Loading(
        device=device, start_rss_bytes=resident().get("VmRSS"), unreset=unreset, boards=boards, start_used_bytes=used,
        context_bytes=made.context_bytes, stranger=made.stranger,
    )  # fmt: skip


def measure_peak(
    model: LoadedModel, prompts: Sequence[Sequence[int]], length: int, loading: Loading, batch: int = 1
) -> PeakMemory:
    """Peak memory of answering the longest prompt, whose cache is the largest."""
    longest = max(prompts, key=len)
    return peak_during(lambda: timed_answer(model, 0, longest, length, batch), loading)


def peak_during(work: Callable[[], object], loading: Loading) -> PeakMemory:
    """Peak memory of ``work``."""
    unreset = reset_high_water() or loading.unreset
    reset_device(loading.device)
    boards = _BoardPeaks(loading)
    with _highest(boards) as highest:
        work()
    allocated, reserved = _device_peaks(loading.device)
    seen, context = resident(), loading.context_bytes
    absent = _absent_on_host(seen, unreset) | ({"device_context_bytes": context} if isinstance(context, str) else {})
    return PeakMemory(
        peak_rss_bytes=None if "peak_rss_bytes" in absent else seen["VmHWM"],
        start_rss_bytes=loading.start_rss_bytes,
        load_peak_rss_bytes=loading.peak_rss_bytes,
        rss_anon_bytes=None if "rss_anon_bytes" in absent else highest["RssAnon"],
        rss_file_bytes=None if "rss_file_bytes" in absent else highest["RssFile"],
        device_allocated_bytes=allocated,
        device_reserved_bytes=reserved,
        load_device_allocated_bytes=loading.device_allocated_bytes,
        device_process_bytes=boards.highest.get("device_process_bytes"),
        device_used_bytes=boards.highest.get("device_used_bytes"),
        device_context_bytes=None if isinstance(context, str) else context,
        absent={**absent, **boards.absent},
    )


def _absent_on_host(seen: Mapping[str, int], unreset: str) -> dict[str, str]:
    """Why figures of host memory are missing, by the field of PeakMemory, given what the kernel reports."""
    absent = dict.fromkeys(_AFTER_RESET, unreset) if unreset else {}
    for name, lines in _READ_FROM.items():
        if lacking := [line for line in lines if line not in seen]:
            what = f"{', '.join(lacking)} of /proc/self/status" if seen else "/proc/self/status"
            absent[name] = f"host memory is read from {what}, which this system lacks; measure on Linux 4.5 or newer"
    return absent


class _BoardPeaks:
    """The highest samples of NVML's figures, and in ``absent`` why one is missing, both by the field of PeakMemory."""

    def __init__(self, loading: Loading) -> None:
        """Nothing is sampled yet."""
        boards, start = loading.boards, loading.start_used_bytes
        self.highest: dict[str, int] = {}
        self.absent: dict[str, str] = {}
        if isinstance(boards, str):
            self._ask: dict[str, Callable[[], int | None]] = {}
            self.absent = dict.fromkeys(("device_process_bytes", "device_used_bytes"), boards)
        else:
            self._ask = {"device_used_bytes": lambda: boards.used_bytes() - start}
            self._ask |= {} if loading.stranger else {"device_process_bytes": boards.process_bytes}
            self.absent = {"device_process_bytes": _UNLISTED}

    def look(self) -> None:
        """Take a sample. A figure that could not be watched to the end has no peak."""
        for name, ask in list(self._ask.items()):
            try:
                found = ask()
            except OSError as error:
                self.absent[name] = f"NVML does not give it for this GPU: {error}"
                self.highest.pop(name, None)
                del self._ask[name]
            else:
                if found is not None:
                    self.highest[name] = max(self.highest.get(name, 0), found)
                    self.absent.pop(name, None)


@contextmanager
def _highest(boards: _BoardPeaks) -> Iterator[dict[str, int]]:
    """Sample ``resident()`` and ``boards`` until the end; the yielded dict ends as the sample of most resident memory."""
    highest = resident()
    ended = Event()

    def look() -> None:
        now = resident()
        if now.get("VmRSS", 0) >= highest.get("VmRSS", 0):
            highest.update(now)
        boards.look()

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


def _device_peaks(device: str) -> tuple[int | None, int | None]:
    """Peaks of what torch's allocator held and reserved since the reset, summed over the GPUs.

    0 where it was not used, None on the CPU.
    """
    if device == "cpu":
        return None, None
    if not (cuda := _cuda_in_use(device)):
        return 0, 0
    numbers = _numbers(cuda, device)
    return sum(map(cuda.max_memory_allocated, numbers)), sum(map(cuda.max_memory_reserved, numbers))


def _numbers(cuda: Any, device: str) -> Sequence[int]:
    """The GPUs of a device as torch counts them: ``cuda`` stands for all."""
    number = device.partition(":")[2]
    return [int(number)] if number else range(cuda.device_count())


def _cuda_in_use(device: str) -> Any:
    """``torch.cuda`` if the model is on a GPU and torch has used one: otherwise asking would itself take device memory."""
    torch = sys.modules.get("torch") if device != "cpu" else None
    return torch.cuda if torch and torch.cuda.is_initialized() else None
