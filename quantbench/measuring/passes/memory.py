"""The memory pass: the kernel's high-water mark of resident memory, reset before a round of generation.

``ru_maxrss`` is inherited through exec and would count the parent; VmHWM, reset through clear_refs, does not. The kernel keeps
no such mark of the anonymous and the file-backed part alone, so their split is sampled: nothing is timed in this pass. On a GPU
torch's allocator keeps marks of its own; what the driver says of the whole process and of the boards is sampled too.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

from quantbench.core.boards import Boards, open_boards, uses_cuda
from quantbench.core.errors import UnsupportedError
from quantbench.core.trace import PeakMemory
from quantbench.measuring.passes.latency import timed_answer
from quantbench.methods import LoadedModel

SAMPLE_S = 0.002
"""The split of resident memory is read once in so many seconds."""

_UNLISTED = "the driver lists no memory as this process's: in a container it may know the process by another number"

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"
_FIELDS = ("VmHWM", "VmRSS", "RssAnon", "RssFile")


def resident() -> dict[str, int]:
    """VmHWM, VmRSS, RssAnon and RssFile of this process in bytes; UnsupportedError where the kernel does not tell them."""
    text = STATUS.read_text() if STATUS.exists() else ""
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
        CLEAR_REFS.write_text(_RESET_HIGH_WATER)
    except OSError as error:
        raise UnsupportedError(
            f"peak memory is reset through /proc/self/clear_refs, which cannot be written here ({error.strerror}); "
            "measure on Linux with a writable /proc"
        ) from error


def reset_device(device: str) -> None:
    """Let torch's allocator give back what it keeps for later, then set its marks to what it holds now."""
    if cuda := _cuda_in_use(device):
        cuda.empty_cache()
        for number in _numbers(cuda, device):
            cuda.reset_peak_memory_stats(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """What was held before a model was opened, and at most while it was (0 until ``ended()``), in bytes.

    ``boards`` are those of the device, or why NVML tells nothing of them; ``stranger`` says that the driver's list names
    another process by this one's number.
    """

    device: str
    start_rss_bytes: int
    peak_rss_bytes: int = 0
    boards: Boards | str
    start_used_bytes: int = 0
    stranger: bool = False
    device_allocated_bytes: int | None = None

    def ended(self) -> Loading:
        """The same, after the model was opened."""
        allocated, _ = _device_peaks(self.device)
        return replace(self, peak_rss_bytes=resident()["VmHWM"], device_allocated_bytes=allocated)


def before_loading(device: str) -> Loading:
    """Give back what can be given back and look at what is held, right before a model is opened on ``device``.

    NVML is opened first: its library takes memory of the host, and none of the device.
    """
    boards = open_boards(device)
    reset_device(device)
    used, stranger = 0, False
    if isinstance(boards, Boards):
        with suppress(OSError):
            stranger = boards.process_bytes() is not None and not uses_cuda()
        try:
            used = boards.used_bytes()
        except OSError as error:
            boards = str(error)
    reset_high_water()
    return Loading(
        device=device, start_rss_bytes=resident()["VmRSS"], boards=boards, start_used_bytes=used, stranger=stranger
    )


def measure_peak(
    model: LoadedModel, prompts: Sequence[Sequence[int]], length: int, loading: Loading, batch: int = 1
) -> PeakMemory:
    """Peak memory of answering the longest prompt, whose cache is the largest."""
    longest = max(prompts, key=len)
    return peak_during(lambda: timed_answer(model, 0, longest, length, batch), loading)


def peak_during(work: Callable[[], object], loading: Loading) -> PeakMemory:
    """Peak memory of ``work``."""
    reset_high_water()
    reset_device(loading.device)
    boards = _BoardPeaks(loading)
    with _highest(boards) as highest:
        work()
    allocated, reserved = _device_peaks(loading.device)
    return PeakMemory(
        peak_rss_bytes=resident()["VmHWM"],
        start_rss_bytes=loading.start_rss_bytes,
        load_peak_rss_bytes=loading.peak_rss_bytes,
        rss_anon_bytes=highest["RssAnon"],
        rss_file_bytes=highest["RssFile"],
        device_allocated_bytes=allocated,
        device_reserved_bytes=reserved,
        load_device_allocated_bytes=loading.device_allocated_bytes,
        device_process_bytes=boards.highest.get("device_process_bytes"),
        device_used_bytes=boards.highest.get("device_used_bytes"),
        absent=boards.absent,
    )


class _BoardPeaks:
    """The highest samples of what NVML says, and in ``absent`` why there is none, both by the field of PeakMemory."""

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
        """Take a sample. What was not watched to its end is no peak."""
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
    """Samples ``resident()`` and ``boards`` until the end; yields what becomes the sample with the most resident memory."""
    highest = resident()
    ended = Event()

    def look() -> None:
        now = resident()
        if now["VmRSS"] >= highest["VmRSS"]:
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
    """What torch's allocator held and reserved at most since the reset, the sum of each GPU's own peak.

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
    """``torch.cuda`` if the model is on a GPU and torch has used one: to ask it otherwise would take device memory itself."""
    torch = sys.modules.get("torch") if device != "cpu" else None
    return torch.cuda if torch and torch.cuda.is_initialized() else None
