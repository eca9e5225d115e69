"""Which versions are stored with a run: those of whatever has a part in its figures."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from typing import TYPE_CHECKING

import pytest

from quantbench.methods import METHODS
from quantbench.planning.packages import installed

if TYPE_CHECKING:
    from pathlib import Path


def test_python_and_what_measures_are_among_them() -> None:
    found = installed()
    assert next(iter(found)) == "python"
    assert found["python"] == platform.python_version()
    assert {"quantbench", "numpy", "pyarrow", "pytest"} <= set(found)
    assert all(found.values())


@pytest.mark.parametrize("name", [method.name for method in METHODS])
def test_whatever_a_method_needs_is_among_them(name: str) -> None:
    """A runtime that forgot a package of one of its methods would keep resume and compare from noticing its upgrade."""
    known = packages_distributions()
    needed = {re.sub(r"[-_.]+", "-", each).lower() for module in METHODS[name].requires for each in known.get(module, ())}
    assert needed <= set(installed())


def test_a_plug_in_of_another_distribution_is_among_them(stub_path: Path) -> None:
    script = "import json; from quantbench.planning.packages import installed; print(json.dumps(installed()))"
    environment = {**os.environ, "PYTHONPATH": str(stub_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout)["stub-method"] == "1.0"
