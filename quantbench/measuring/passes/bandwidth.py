"""The memory roofline: how fast memory can move bytes, and how many a decode step must read.

The bandwidth is that of the fastest of several copies of an array larger than most caches; bytes read and bytes written both
count. Each run measures it once per number of threads, or per GPU, in a separate process before a model is opened, and the
best figure since the machine was booted is kept in the cache. A GPU copies far faster than copies can be launched, so there
several copies are timed together, on its own clock.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from quantbench.core.cache import digest, recall, remember, write_atomically
from quantbench.core.children import answer, call
from quantbench.core.errors import ChildError, QuantbenchError
from quantbench.core.gpus import chosen_gpus
from quantbench.core.machine import available_memory, describe
from quantbench.core.trace import WeightMemory

BANDWIDTH_FORMAT = 1
DEVICE_FORMAT = 2
"""Raised whenever the measurement changes, on a CPU and on a GPU, so that cached figures are measured again."""

_ARRAY_BYTES = 256 * 2**20
_DEVICE_ARRAY_BYTES = 2**30
"""About twenty times the largest cache of a GPU."""

_TOGETHER = 10
"""Copies on a GPU between two events: launching one takes some microseconds, hidden behind the copy before it."""

_MEMORY_SHARE = 0.1
"""Each of the two arrays takes at most this share of the free memory."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LEAST_COPIES = 3
_COPYING_S = 0.4
_TIMEOUT_S = 120


def memory_bandwidth(device: str, threads: int, run: Path) -> float | str:
    """Bytes per second read and written by a copy on ``device``, on a CPU with that many threads; a string says why not.

    ``cuda`` stands for the first GPU: a model spread over several reads from one after the other. It is measured once per run,
    whose files are in ``run``; the largest figure since the machine was booted counts, since other work can only lower it.
    """
    try:
        asked = _asked_on_cpu(device, threads) if device == "cpu" else _asked_on_device(device)
        of_run = run / f"bandwidth-{digest(asked)}.json"
        if not of_run.is_file():
            known = recall("bandwidth", asked)
            task = f"the measurement of memory bandwidth on {device}"  # in its own process, so its arrays count nowhere
            told = call(__name__, {"device": device, "threads": threads}, task, timeout_s=_TIMEOUT_S)
            figure = max(told["bytes_per_second"], known if isinstance(known, float) else 0.0)
            remember("bandwidth", asked, figure)
            write_atomically(of_run, json.dumps({"bytes_per_second": figure, **asked}))
        return float(json.loads(of_run.read_text())["bytes_per_second"])
    except ChildError as error:
        return f"memory bandwidth could not be measured on {device}: {error.reason}"
    except (QuantbenchError, OSError, ImportError) as error:  # this costs only this figure, never the row
        return str(error)


def remembered_bandwidth(device: str, threads: int) -> float | None:
    """The figure of an earlier run on this CPU since it was booted, without measuring anything; None where there is none."""
    if device != "cpu":
        return None
    try:
        found = recall("bandwidth", _asked_on_cpu(device, threads))
    except (QuantbenchError, OSError, ImportError):
        return None
    return found if isinstance(found, float) else None


def _asked_on_cpu(device: str, threads: int) -> dict[str, object]:
    return {
        "machine": describe().fingerprint, "device": device, "threads": threads, "with": f"numpy {version('numpy')}",
        "format": BANDWIDTH_FORMAT, "boot": _boot(),
    }  # fmt: skip


def _asked_on_device(device: str) -> dict[str, object]:
    """What identifies this GPU, whatever its current number."""
    gpu = chosen_gpus(device)[0]
    return {
        "gpu": gpu.name, "uuid": gpu.uuid, "driver": gpu.driver, "with": f"torch {version('torch')}",
        "format": DEVICE_FORMAT, "boot": _boot(),
    }  # fmt: skip


def _boot() -> str:
    """What distinguishes this machine and boot from another of its kind that shares the cache."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else platform.node()


def bytes_per_token(weights: WeightMemory, prompts: Sequence[Sequence[int]], length: int, batch: int) -> int | None:
    """Bytes that a decode step reads per sequence, mean over the steps of answers of ``length`` tokens.

    Step i after a prompt of n tokens reads the weights once for the whole batch and, for each sequence, the keys and values of
    the n + i - 1 positions before its own. None where the bytes are unknown.
    """
    if weights.step_bytes is None or weights.cache_position_bytes is None:
        return None
    positions = fmean(map(len, prompts)) + length / 2 - 1
    return round(weights.step_bytes / batch + weights.cache_position_bytes * positions)


def copy_on_cpu(threads: int, array_bytes: int) -> float:
    """The fastest copy's bytes per second; each thread copies its own part, as numpy releases the GIL meanwhile."""
    import numpy as np

    parts = [np.ones(array_bytes // threads, dtype=np.uint8) for _ in range(threads)]  # zeros would all be one page, cached
    copies = [np.empty_like(part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        seconds = _fastest(lambda: list(pool.map(np.copyto, copies, parts)))
    return 2 * sum(part.nbytes for part in parts) / seconds


def copy_on_device(device: str, array_bytes: int) -> float:
    """Bytes per second of the fastest of several series of copies, from one place in the device's memory to another."""
    import torch

    with torch.cuda.device(device):
        source = torch.ones(array_bytes, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        target.copy_(source)
        taken: list[float] = []
        while len(taken) < _LEAST_COPIES or sum(taken) < _COPYING_S:
            started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            started.record()
            for _ in range(_TOGETHER):
                target.copy_(source, non_blocking=True)
            ended.record()
            ended.synchronize()
            taken.append(started.elapsed_time(ended) / 1000)
        return 2 * array_bytes * _TOGETHER / min(taken)


def device_array_bytes(device: str) -> int:
    """How large each array may be on the device: limited by the device's free memory, not the host's."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return min(_DEVICE_ARRAY_BYTES, int(free * _MEMORY_SHARE))


def _fastest(copy: Callable[[], object]) -> float:
    """Seconds of the fastest of several copies; one untimed copy goes first, since it also faults the pages in."""
    copy()
    taken: list[float] = []
    while len(taken) < _LEAST_COPIES or sum(taken) < _COPYING_S:
        started = time.perf_counter()
        copy()
        taken.append(time.perf_counter() - started)
    return min(taken)


def measure(request: Mapping[str, Any]) -> dict[str, float]:
    """Bytes per second of the fastest copy on the requested device and threads, and the size of its arrays."""
    device = request["device"]
    if device == "cpu":
        array_bytes = min(_ARRAY_BYTES, int(available_memory() * _MEMORY_SHARE))
        return {"bytes_per_second": copy_on_cpu(request["threads"], array_bytes), "array_bytes": array_bytes}
    array_bytes = device_array_bytes(device)
    return {"bytes_per_second": copy_on_device(device, array_bytes), "array_bytes": array_bytes}


if __name__ == "__main__":
    answer(measure)
