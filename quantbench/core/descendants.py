"""All processes below another: found, and ended so that neither they nor what they hold stays behind."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_TRIES = 3
_CLEANERS = ("quantbench.core.supervised", "multiprocessing.resource_tracker")
"""Modules whose processes end by themselves once those above them are gone, and remove what these had, as shared memory."""

_CLEANING_S = 15.0
"""What a cleaner may take: a supervisor waits for its program, which may remove shared memory, for ten seconds."""


def die_with_parent() -> None:
    """Have the kernel kill this process as soon as its parent is gone; without effect elsewhere than on Linux."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """From now on what a descendant leaves behind becomes a child of this process; without effect elsewhere than on Linux."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value)


def below(pid: int) -> list[psutil.Process]:
    """All processes that the one with this id has started, and those that they have."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_below(pid: int) -> None:
    """Kill all of them; more than once, as one of them may have been starting another."""
    for _ in range(_TRIES):
        left = below(pid)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)


def end_below() -> None:
    """End all below this process, and leave no zombie; those that clean up after others get the time for it."""
    left = below(os.getpid())
    if not left:
        return
    cleaners = [process for process in left if _cleans(process)]
    spared = {process.pid for cleaner in cleaners for process in (cleaner, *below(cleaner.pid))}
    for process in left:
        if process.pid not in spared:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    psutil.wait_procs(cleaners, timeout=_CLEANING_S)
    kill_below(os.getpid())
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _cleans(process: psutil.Process) -> bool:
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(module in command for module in _CLEANERS)
