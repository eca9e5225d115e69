"""SIGTERM and SIGHUP end what runs here as Ctrl-C does: nothing half-made stays, and a run's row says that it was ended."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_AGAIN_S = 10.0
"""A service manager or a closing terminal may signal more than once: cleaning up after the first signal is not interrupted."""


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise KeyboardInterrupt; without effect outside the main thread.

    A signal that is ignored (nohup) or that somebody else handles already is left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -math.inf

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > _AGAIN_S:
            raise KeyboardInterrupt(signal.Signals(number).name)

    ours = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
