"""What verifying the cache costs: checksums of all that a warm main job reads from it, over that job's time.

    python bench/harness/run.py cache-verify

QUANTBENCH_HARNESS_SELECT is pytest's -k. The cache is the user's own, or QUANTBENCH_CACHE.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ratios import CannotRunError, Result
from waiting import main_job

from quantbench.core.cache import cache_root
from quantbench.core.checksums import CHECKSUMS, damage, of_run


def cache_verify(select: str = os.environ.get("QUANTBENCH_HARNESS_SELECT", "")) -> Iterator[Result]:
    """A run notes the checksum of each file that it verified; the same folders are verified here once more, by themselves."""
    main_job(select)
    with tempfile.TemporaryDirectory() as name:
        job_s = main_job(select, f"--quantbench-keep-jobs={name}")
        read = {note.read_text() for note in Path(name).glob("*/.verified/*")}
    seals = cache_root().glob(f"*/*/{CHECKSUMS}")
    used = [seal.parent for seal in seals if read & set(json.loads(seal.read_text()).values())]
    if not used:
        raise CannotRunError(f"the main job read nothing from {cache_root()}")
    with tempfile.TemporaryDirectory() as name, of_run(Path(name)):
        started = time.perf_counter()
        broken = [each for each in used if damage(each)]
        seconds = time.perf_counter() - started
    if broken:
        raise CannotRunError(f"{broken[0]} is damaged")
    size = sum(each.lstat().st_size for folder in used for each in folder.rglob("*"))
    name = f"verifying {len(used)} artifacts, {size / 1e6:.0f} MB"
    yield Result(name, f"{seconds:.2f} s", f"{job_s:.0f} s", seconds / job_s, "<= 0.03")
