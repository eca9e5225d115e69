"""How quantbench starts itself again: a module of its own, or of Python's tools, in a process with a safe path."""

from __future__ import annotations

import sys


def python_module(module: str, *arguments: str) -> list[str]:
    """The command line that runs ``module`` with this Python.

    ``-P`` leaves the current folder out of the import path: a ``torch.py`` or ``numpy.py`` that lies where quantbench was
    started is somebody's file and not the library. PYTHONPATH counts as always.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
