"""Distributions whose versions belong to a measurement: of the harness, the runtimes, and every plug-in with what it needs."""

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
"""What measures, computes and keeps, whatever is measured."""


def installed() -> dict[str, str]:
    """The versions that are stored with a run, Python's first."""
    return {"python": platform.python_version(), **versions(dict.fromkeys((*_OWN, *packages(), *_of_plug_ins())))}


def _of_plug_ins() -> Iterator[str]:
    """The distributions that plug-ins came with, and those of the modules that their methods need."""
    for registry in (RUNTIMES, METHODS, METRICS):
        yield from registry.distributions.values()
    needed = [module for name in METHODS.distributions for module in METHODS[name].requires]
    known = packages_distributions() if needed else {}  # reads the list of files of everything that is installed
    for module in needed:
        yield from (re.sub(r"[-_.]+", "-", name).lower() for name in known.get(module, ()))
