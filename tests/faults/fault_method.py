"""A method that goes wrong where it is told to, on a runtime without torch, whose workers start in a second."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

from stub_method import StubModel

from quantbench.core.scenario import Precision, Spec
from quantbench.methods import LoadedModel, Sampling, Settings, method
from quantbench.runtimes import Runtime

PLACES = ("loading", "memory", "scoring", "latency")
SOUND = ("exact", "one", "two", "three", "four", "five")
NOTES = "FAULT_NOTES"
"""The variable that names the file in which a worker notes its process id, and what it had when it went wrong."""

MARK = "FAULT_MARK"
"""The variable that is in the environment of every process of a run, with a name of the run's own."""

FILLED = "FAULT_FILLED"
"""The variable that names a file on a small disk."""

_SPARE_BYTES = 2**27
"""What a worker may still allocate once its address space is limited."""

TORCH_FREE = Runtime(name="torch-free", about="nothing that imports torch", torch_free=True)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang() -> None:
    """Wait for ever, with shared memory, and with a process in a session of its own that has a child."""
    mark = os.environ.get(MARK, "none")
    segment = SharedMemory(name=f"{mark}-{os.getpid()}", create=True, size=4096)
    tree = subprocess.Popen(["sh", "-c", "sleep 900 & wait"], start_new_session=True)
    _note("hung", segment.name, str(tree.pid))
    time.sleep(900)


def _memory() -> None:
    raise MemoryError("it was told to run out of memory")


def _limit() -> None:
    """Break a real limit."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _SPARE_BYTES, used + _SPARE_BYTES))
    held = []
    while True:
        held.append(bytearray(2**24))


def _fill() -> None:
    """Fill a disk to the last byte, and go on."""
    with suppress(OSError), open(os.environ[FILLED], "wb", buffering=0) as stream:  # noqa: PTH123
        while stream.write(bytes(4096)):
            pass


FAULTS: Mapping[str, Callable[[], None]] = {
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sigsegv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "sigabrt": os.abort,
    "sigstop": _stop,
    "hang": _hang,
    "memory": _memory,
    "limit": _limit,
    "full": _fill,
}


def _note(*words: str) -> None:
    if place := os.environ.get(NOTES):
        with Path(place).open("a") as stream:
            stream.write(json.dumps([os.getpid(), *words]) + "\n")


class FaultyModel(StubModel):
    """Goes wrong when the named pass begins to run it."""

    def __init__(self, fault: str, place: str, noise: float) -> None:
        super().__init__(noise)
        self._fault, self._place = fault, place
        self._scored = False

    def generate(self, prompt: Sequence[int], limit: int, sampling: Sampling | None = None) -> Iterator[int]:
        self._at("latency" if self._scored else "memory")
        return super().generate(prompt, limit, sampling)

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[Any]:
        self._scored = True
        self._at("scoring")
        return super().score(tokens, first)

    def _at(self, place: str) -> None:
        if self._fault and place == self._place:
            _note(self._fault, place)
            FAULTS[self._fault]()


@method(
    "fault",
    precisions=[
        Precision(name=name, bits=8) for name in (*SOUND, *(f"{fault}-{place}" for fault in FAULTS for place in PLACES))
    ],
    requires=[],
    extra="tests",
    runtime="torch-free",
    anchor="fault/exact",
)
@contextmanager
def open_fault(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """Nothing is loaded"""
    _note("opened", spec.variant.precision)
    fault, _, place = spec.variant.precision.partition("-")
    if place == "loading":
        _note(fault, place)
        FAULTS[fault]()
    number = SOUND.index(fault) if fault in SOUND else 1
    yield FaultyModel(fault if place else "", place, noise=0.1 * number)
