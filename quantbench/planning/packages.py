"""Distributions whose versions belong to a measurement: the harness, the runtimes, and every plug-in with its requirements."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib.metadata import packages_distributions

from quantbench.core.machine import versions
from quantbench.methods import METHODS
from quantbench.metrics import METRICS
from quantbench.runtimes import RUNTIMES, packages

_OWN = ("quantbench", "numpy", "pandas", "pyarrow", "pytest", "pytest-benchmark", "sacrebleu", "scipy")
"""Used in every measurement, whatever the method."""


def installed() -> dict[str, str]:
    """The versions stored with a run, Python's first."""
    return {"python": platform.python_version(), **versions(dict.fromkeys((*_OWN, *packages(), *_of_plug_ins())))}


def _of_plug_ins() -> Iterator[str]:
    """The distributions of plug-ins, and of the modules that their methods need."""
    for registry in (RUNTIMES, METHODS, METRICS):
        yield from registry.distributions.values()
    needed = [module for name in METHODS.distributions for module in METHODS[name].requires]
    known = packages_distributions() if needed else {}  # slow: reads the file list of everything installed
    for module in needed:
        yield from (re.sub(r"[-_.]+", "-", name).lower() for name in known.get(module, ()))
