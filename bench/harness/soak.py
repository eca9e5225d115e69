"""A long run: 500 scenarios of a stub, most of which fail in some way, and 50 of the canary. What does the parent hold on to?

    python bench/harness/run.py soak

After each test the parent writes down its memory, open files and threads (``soak_watch``). At its end nothing of it may be
left: no process, no file in the folder for temporary files or in /dev/shm, no partial entry of the cache.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import psutil
from ratios import Result
from spent import spent

ROOT = Path(__file__).parents[2]
STUBS = ("exact", "noisy", "odd", "error", "refused", "memory", "gpu-memory", "aborted", "killed", "segfault")
"""Precisions of tests/stub_method.py: three work, and the others fail in as many ways."""

REPEATS = 50
OUT = "soak.json"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
TORCHS = "torchinductor_"
"""The folder where torch keeps what it compiled for the next process, one for each user."""

FEW = 50
"""Tests over which the median is taken, at the beginning and the end; as many at the very beginning import what is needed."""


def soak() -> Iterator[Result]:
    """Growth of the parent from its 50th to its last tests, and what is left behind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site, cache, temporary = (folder / each for each in ("site", "cache", "tmp"))
        _install(site)
        temporary.mkdir()
        (folder / "matrix.toml").write_text(
            f'models = ["canary"]\nprompts = ["two"]\ncontrol = false\nenergy = false\nprobes = []\n'
            f'[methods]\ntorch = ["fp32"]\nstub = {json.dumps(STUBS)}\n'
            "[conditions]\noutput_tokens = 2\nanswer_tokens = 2\ncontinuation_tokens = 2\n"
        )
        (folder / "test_each.py").write_text("from quantbench.suite.test_load import test_load\n")
        before = _shared_memory()
        options = ["matrix=matrix.toml", "profile=quick", f"repeats={REPEATS}"]
        command = [
            sys.executable, "-m", "pytest", "-qq", "-p", "no:cacheprovider", "-p", "soak_watch", "test_each.py",
            *(f"--quantbench-{each}" for each in options),
        ]  # fmt: skip
        found = spent(
            command, folder, codes=(0, 1), PYTHONPATH=os.pathsep.join(map(str, (site, Path(__file__).parent))),
            QUANTBENCH_CACHE=str(cache), TMPDIR=str(temporary), SOAK_OUT=OUT, STUB_UNWATCHED="1",
        )  # fmt: skip
        yield from _growth(json.loads((folder / OUT).read_text()), found.seconds)
        yield from _rows(folder)
        left = {
            "processes": [each.pid for each in psutil.process_iter() if _belongs(each, cache)],
            "temporary files": [each for each in temporary.iterdir() if not each.name.startswith(TORCHS)],
            "files in /dev/shm": sorted(_shared_memory() - before),
            "partial entries of the cache": [each for each in cache.rglob("*") if ".partial" in each.name],
        }
        for what, those in left.items():
            yield Result(f"soak: {what} left behind", ", ".join(map(str, those)) or "none", "", len(those), "<= 0")


def _install(site: Path) -> None:
    """The stub as an installed distribution."""
    site.mkdir()
    shutil.copy(ROOT / "tests" / "stub_method.py", site)
    (site / "quantbench").symlink_to(ROOT / "quantbench")
    info = site / "stub_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stub-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[quantbench.methods]\nstub = stub_method\n")


def _growth(seen: list[dict[str, int]], seconds: float) -> Iterator[Result]:
    """What the parent holds at its end beside what it held once everything was imported."""
    limits = {"memory": 50e6, "handles": 5, "threads": 2, "children": 2}
    for what, limit in limits.items():
        first, last = (median(each[what] for each in part) for part in (seen[FEW : 2 * FEW], seen[-FEW:]))
        scale, unit = (1e6, " MB") if what == "memory" else (1, "")
        shown = [f"{each / scale:.0f}{unit}" for each in (last, first)]
        name = f"soak: {what}, last and first tests ({seconds:.0f} s)" if what == "memory" else f"soak: {what}"
        yield Result(name, *shown, (last - first) / scale, f"<= {limit / scale:g}")


def _rows(folder: Path) -> Iterator[Result]:
    """Rows that are missing, of all scenarios and of the canary's own."""
    import pandas as pd

    rows = pd.read_parquet(folder / "results" / "scenarios")
    measured = int(((rows["status"] == "ok") & (rows["method"] == "torch")).sum())
    planned = REPEATS * (len(STUBS) + 1)
    yield Result("soak: rows missing", f"{len(rows)}", f"{planned}", planned - len(rows), "<= 0")
    yield Result("soak: the canary's not measured", f"{measured}", f"{REPEATS}", REPEATS - measured, "<= 0")


def _belongs(process: psutil.Process, cache: Path) -> bool:
    """Whether it was started by the run: it has the run's cache in its environment."""
    try:
        return process.environ().get("QUANTBENCH_CACHE") == str(cache)
    except psutil.Error:
        return False


def _shared_memory() -> set[str]:
    return {each.name for each in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()
