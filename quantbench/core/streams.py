"""Standard streams that the caller has closed (``>&-``): what is written there then goes nowhere."""

from __future__ import annotations

import os
import sys

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def reopen_closed() -> None:
    """Open the null device in place of each closed standard stream of this process, and for its children.

    Else the next file that is opened gets the number 0, 1 or 2, and what a library or a child prints is written into it.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:  # as Python leaves it
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open as long as the process
