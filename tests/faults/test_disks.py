"""Disks that get full in the middle of a run: said truthfully, and what was measured before is kept."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Place

LONG = os.environ.get("QUANTBENCH_FAULTS", "") == "all"
MIB = 2**20
long = pytest.mark.skipif(not LONG, reason="takes long: tox -e faults")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Put a disk of four MiB where a folder is."""
    mounted: list[Path] = []

    def mount(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={4 * MIB}", "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """Leave so many bytes free."""
    path = folder / "filled"
    path.write_bytes(bytes(os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - left))
    return path


def test_results(place: Place, small_disk: Callable[[Path], None], told: Callable[..., None]) -> None:
    """Rows from before are safe, those after are not there, and are measured once there is room."""
    place.measures("one", "full-latency", "two")
    small_disk(place.results)
    filled = place.results / "filled"

    assert place.run(env={"FAULT_FILLED": str(filled)}) == 1

    assert "No space left on device" in place.said
    assert "make room or choose another location with --results; rows written before are safe" in place.said
    assert "Traceback" not in place.said
    assert {name for name, *_ in place.rows()} == {"canary/fault-one/two"}
    filled.unlink()
    assert place.run("resume=last", env={"FAULT_FILLED": "/dev/full"}) == 0, place.said
    assert len(place.rows()) == 3
    filled.unlink(missing_ok=True)
    assert place.left() == []
    told("disk full: results", 3, len(place.rows()))


@pytest.mark.parametrize("engine", ["process", "inline"] if LONG else ["process"])
def test_temporary_files(engine: str, place: Place, small_disk: Callable[[Path], None], told: Callable[..., None]) -> None:
    """The worker cannot even write why it failed."""
    place.measures("one", "full-scoring")
    small_disk(place.temporary)

    code = place.run(f"engine={engine}", env={"FAULT_FILLED": str(place.temporary / "filled")})

    assert (code, "Traceback" in place.said) == (1, False), place.said
    frame = place.frame().set_index("precision")
    assert frame.status.to_dict() == {"one": "ok", "full-scoring": "error"}
    reason = frame.reason["full-scoring"]
    assert f"there is no room left for temporary files in {place.temporary}" in reason
    assert reason.endswith("set TMPDIR to a folder on a larger disk")
    assert place.left() == []
    told(f"disk full: temporary files, engine {engine}", 2, len(place.rows()))


@long
@pytest.mark.parametrize(
    ("left", "said"), [(2**17, "take 32.8 kB"), (2**16, "there is no room left for the cache in")], ids=["forecast", "found"]
)
def test_cache(
    left: int, said: str, new_place: Callable[..., Place], small_disk: Callable[[Path], None], told: Callable[..., None]
) -> None:
    """A reference that cannot be kept costs similarity."""
    place = new_place("cold", cold=True)
    place.measures("one")
    small_disk(place.cache)
    fill(place.cache, left)

    assert place.run_inline() == 0, place.said

    (row,) = place.frame().to_dict("records")
    assert row["status"] == "ok"
    assert "the reference fault/exact could not be made: " in row["null_reasons"]
    assert said in row["null_reasons"]
    assert "QUANTBENCH_CACHE" in row["null_reasons"]
    assert "Traceback" not in place.said
    assert place.left() == []
    told("disk full: cache", 1, 1)
