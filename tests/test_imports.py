"""What stays light: importing the package and its plugin, and planning the default matrix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch", "transformers", "llama_cpp", "bitsandbytes", "gguf", "pandas", "pyarrow", "numpy", "scipy", "sacrebleu",
    "rich", "jinja2",
)  # fmt: skip
PLANNING = """
from dataclasses import replace
from quantbench.planning.options import RunOptions, plan
options = RunOptions.read(lambda option: option.default)
for matrix in (None, "bench/matrix.toml"):
    assert len(plan(replace(options, matrix=matrix)).scenarios) >= 15
"""


def _loaded(statements: str) -> list[str]:
    """Heavy packages that a fresh interpreter has in memory after ``statements``."""
    script = f"{statements}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize(
    "statements",
    [
        "import quantbench",
        "import quantbench.plugin",
        "from quantbench import measure",
        "import quantbench.planning.options",
        "import quantbench.running.runner",
        "import quantbench.measuring.worker",
        "import quantbench.results.store",
        PLANNING,
    ],
    ids=["package", "plugin", "measure", "options", "runner", "worker", "store", "planning the default matrix"],
)
def test_nothing_heavy_is_imported_by(statements: str) -> None:
    assert _loaded(statements) == []


def test_naming_the_plug_ins_imports_nothing_heavy() -> None:
    statements = """
from quantbench.running.engines import ENGINES
from quantbench.methods import METHODS
from quantbench.metrics import METRICS
from quantbench.models import MODELS
[each.about for each in (*METHODS, *METRICS, *ENGINES, *MODELS)]
[each.missing() for each in METHODS]
"""
    assert _loaded(statements) == []


def test_the_detector_sees_a_heavy_import() -> None:
    assert _loaded("import numpy") == ["numpy"]


def test_load_is_found_on_first_use() -> None:
    import quantbench
    from quantbench.results import store

    assert quantbench.load is store.load
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = quantbench.laod
