"""Which disk is full: by the file that an error names, or else by the room that is left."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from quantbench.core.disks import full, means_full, which_full
from quantbench.core.record import Status
from quantbench.running.engines import process

if TYPE_CHECKING:
    from collections.abc import Callable

NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Say how many bytes are free below folders of the test's own folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))

    def say(**left: int) -> None:
        def usage(folder: Path) -> SimpleNamespace:
            return SimpleNamespace(free=left[Path(folder).relative_to(tmp_path).parts[0]])

        monkeypatch.setattr(shutil, "disk_usage", usage)

    return say


@pytest.mark.parametrize(
    ("error", "means"),
    [
        (NO_ROOM, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("no space left"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception, means: bool) -> None:
    assert means_full(error) is means


def test_a_disk_without_room_is_named_with_its_mend(free: Callable[..., None], tmp_path: Path) -> None:
    job = tmp_path / "tmp" / "job"
    free(tmp=10**9, cache=10**9)
    assert full(job) == ""
    free(tmp=4096, cache=10**9)
    assert full(job) == (
        f"there is no room left for temporary files in {job.parent} (4.1 kB free); set TMPDIR to a folder on a larger disk"
    )
    free(tmp=10**9, cache=0)
    assert full(job).startswith(f"there is no room left for the cache in {tmp_path / 'cache'} (0 B free); set QUANTBENCH_CACHE")
    free(kept=0, cache=10**9)
    assert full(tmp_path / "kept").endswith("give --keep-jobs a folder on a larger disk")


def test_an_error_names_the_disk_or_else_it_is_the_fuller_one(free: Callable[..., None], tmp_path: Path) -> None:
    """Of what was half-written in the cache the room is free again."""
    job = tmp_path / "tmp" / "job"
    free(tmp=10**9, cache=10**8)
    assert "the cache" in which_full(job, NO_ROOM)
    assert "temporary files" in which_full(job, OSError(errno.ENOSPC, "No space left on device", str(job / "trace-0.json")))


def test_a_worker_that_could_not_say_why_it_failed(free: Callable[..., None], tmp_path: Path) -> None:
    job = tmp_path / "tmp" / "job"
    free(tmp=0, cache=10**9)
    failure = process.ending(job, 1, oom_killed=False)
    assert failure is not None
    assert (failure.status, failure.reason) == (Status.ERROR, f"the worker ended with exit code 1: {full(job)}")
