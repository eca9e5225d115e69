"""The memory pass in a process of its own that touches a known number of bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from quantbench.errors import UnsupportedError
from quantbench.passes import memory

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 2**20
HOLDING, PASSING, MAPPED = 48 * MIB, 96 * MIB, 32 * MIB

PRELUDE = """
import json, mmap, sys
from quantbench.passes.memory import measure_peak, reset_high_water, resident

PAGE = mmap.PAGESIZE

def anonymous(size):
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, size, PAGE):
        area[offset] = 1
    return area

def mapped(path, size):
    with open(path, "rb") as stream:
        area = mmap.mmap(stream.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    sum(area[offset] for offset in range(0, len(area), PAGE))
    return area
"""


@pytest.fixture
def large_file() -> str:
    """A file on a disk: what lies in a tmpfs counts as shared memory. Any installed library that is large enough."""
    import pyarrow as pa

    return str(next(path for path in Path(pa.__file__).parent.glob("lib*.so*") if path.stat().st_size >= MAPPED))


def _close(size: int) -> object:
    """Within 2 % and 1 MiB: the interpreter itself breathes a little."""
    return pytest.approx(size, rel=0.02, abs=0.02 * size + MIB)


def _run(script: str, *arguments: str) -> Mapping[str, Mapping[str, int]]:
    command = [sys.executable, "-c", PRELUDE + script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found: Mapping[str, Mapping[str, int]] = json.loads(done.stdout)
    return found


def test_touched_bytes_are_resident_and_anonymous() -> None:
    found = _run(f"before = resident(); kept = anonymous({HOLDING}); print(json.dumps([before, resident()]))")
    before, after = found
    assert after["VmRSS"] - before["VmRSS"] == _close(HOLDING)
    assert after["RssAnon"] - before["RssAnon"] == _close(HOLDING)
    assert after["RssFile"] - before["RssFile"] < MIB


def test_a_mapped_file_is_resident_and_file_backed(large_file: str) -> None:
    script = f"before = resident(); kept = mapped(sys.argv[1], {MAPPED}); print(json.dumps([before, resident()]))"
    before, after = _run(script, large_file)
    assert after["RssFile"] - before["RssFile"] == _close(MAPPED)
    assert after["RssAnon"] - before["RssAnon"] < MIB


def test_the_high_water_mark_remembers_what_was_given_back_until_it_is_reset() -> None:
    before, passed, reset = _run(
        f"before = resident(); anonymous({PASSING}).close(); passed = resident(); reset_high_water()\n"
        "print(json.dumps([before, passed, resident()]))"
    )
    assert passed["VmHWM"] - before["VmRSS"] == _close(PASSING)
    assert passed["VmRSS"] - before["VmRSS"] < MIB
    assert reset["VmHWM"] - reset["VmRSS"] < MIB


def test_a_parents_peak_is_not_inherited() -> None:
    """What ru_maxrss would count: the parent held more than the child ever did."""
    script = (
        f"import os, subprocess\nkept = anonymous({PASSING})\n"
        "child = 'import json; from quantbench.passes.memory import *; reset_high_water(); print(json.dumps([resident()]))'\n"
        "print(subprocess.run([sys.executable, '-c', child], capture_output=True, text=True, check=True).stdout)"
    )
    (child,) = _run(script)
    assert child["VmHWM"] < PASSING


def test_measure_peak_splits_loading_from_answering(large_file: str) -> None:
    """Loading passes a high peak and keeps weights and a mapped file; answering takes a little and gives it back."""
    answering = 16 * MIB
    script = f"""
from dataclasses import asdict

class Model:
    def __init__(self, path):
        anonymous({PASSING}).close()
        self.weights, self.file = anonymous({HOLDING}), mapped(path, {MAPPED})

    def generate(self, prompt, limit, sampling=None):
        work = anonymous({answering})
        yield from range(limit)
        work.close()

    def synchronize(self):
        pass

before = resident()
model = Model(sys.argv[1])
loading = before["VmRSS"], resident()["VmHWM"]
print(json.dumps([before, asdict(measure_peak(model, [(1, 2), (3,)], 4, loading, "cpu"))]))
"""
    before, peak = _run(script, large_file)
    assert peak["start_rss_bytes"] == before["VmRSS"]
    assert peak["load_peak_rss_bytes"] - before["VmRSS"] == _close(PASSING)
    assert peak["peak_rss_bytes"] - before["VmRSS"] == _close(HOLDING + MAPPED + answering)
    assert peak["rss_anon_bytes"] - before["RssAnon"] == _close(HOLDING)
    assert peak["rss_file_bytes"] - before["RssFile"] == _close(MAPPED)
    assert (peak["device_allocated_bytes"], peak["device_reserved_bytes"]) == (None, None)


def test_resident_agrees_with_psutil() -> None:
    import psutil

    found = memory.resident()
    assert found["VmRSS"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.02, abs=2 * MIB)
    assert found["VmHWM"] >= found["VmRSS"] - MIB
    assert found["RssAnon"] + found["RssFile"] <= found["VmRSS"] + MIB


def test_without_proc_it_is_unsupported_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    with pytest.raises(UnsupportedError, match=r"^peak memory is read from /proc/self/status, which this system lacks"):
        memory.resident()
