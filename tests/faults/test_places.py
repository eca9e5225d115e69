"""Places that cannot be written, limits of the system, closed streams, and a clock that was set back."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Place

LONG = os.environ.get("QUANTBENCH_FAULTS", "") == "all"
long = pytest.mark.skipif(not LONG, reason="takes long: tox -e faults")
USAGE = 2
"""The exit code of a run that was refused at its start, which has no rows."""

ROOT = os.geteuid() == 0
NO_OVERRIDE = "-dac_override,-dac_read_search"
CGROUP = Path("/sys/fs/cgroup/pids")
CLOCK_BACK = """
import datetime, time
real, back_s = time.time, 400 * 86400
class Back(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(real() - back_s, tz)
time.time = lambda: real() - back_s
time.time_ns = lambda: int(1e9 * time.time())
import quantbench.results.store as store
store.datetime = Back
"""


@pytest.fixture(scope="session")
def heeding() -> Sequence[str]:
    """A command under which permissions hold, also for root."""
    if not ROOT:
        return ()
    if not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and there is no setpriv to change that")
    return ("setpriv", f"--bounding-set={NO_OVERRIDE}", f"--inh-caps={NO_OVERRIDE}")


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Take the right to write from folders, for the length of a test."""
    taken: list[Path] = []

    def take(folder: Path) -> None:
        for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            each.chmod(0o555)
            taken.append(each)

    yield take
    for folder in taken:
        folder.chmod(0o755)


def test_results_that_cannot_be_written(
    place: Place, heeding: Sequence[str], read_only: Callable[[Path], None], told: Callable[..., None]
) -> None:
    place.measures("one")
    place.results.mkdir()
    read_only(place.results)

    assert place.run(under=heeding) == 2

    assert "results cannot be written to" in place.said
    assert "choose another location with --results" in place.said
    assert "Traceback" not in place.said
    assert place.left() == []
    told("read-only: results", 0, len(place.rows()))


@long
def test_a_cache_that_cannot_be_written(
    new_place: Callable[..., Place], heeding: Sequence[str], read_only: Callable[[Path], None], told: Callable[..., None]
) -> None:
    """One that has the reference is as good as any; one that has not costs similarity."""
    place = new_place("cold", cold=True)
    place.measures("one")
    (place.cache / "reference").mkdir()
    read_only(place.cache)
    assert place.run_inline(under=heeding) == 0, place.said
    (row,) = place.frame().to_dict("records")
    assert f"the cache cannot be written at {place.cache / 'reference'} (Permission denied)" in row["null_reasons"]

    (place.cache / "reference").chmod(0o755)
    assert place.run_inline("results=filled", under=heeding) == 0, place.said
    read_only(place.cache)
    assert place.run_inline("results=again", under=heeding) == 0, place.said

    import pandas as pd

    filled, again = (pd.read_parquet(place.folder / name / "scenarios") for name in ("filled", "again"))
    assert filled.kld_mean.notna().all()
    assert again.kld_mean.tolist() == filled.kld_mean.tolist()
    told("read-only: cache", 2, 1 + len(again))


@long
def test_a_current_folder_and_a_home_that_cannot_be_written(
    place: Place, heeding: Sequence[str], read_only: Callable[[Path], None], told: Callable[..., None]
) -> None:
    place.measures("one")
    (place.folder / "said").touch()
    (place.folder / "notes").touch()
    (place.folder / "home").mkdir()
    place.results.mkdir()
    place.folder.chmod(0o555)
    try:
        assert place.run(under=heeding, env={"HOME": str(place.folder / "home")}) == 0, place.said
    finally:
        place.folder.chmod(0o755)
    assert len(place.rows()) == 1
    assert place.left() == []
    told("read-only: current folder, home", 1, len(place.rows()))


@long
def test_no_shared_memory(place: Place, told: Callable[..., None]) -> None:
    under = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"', "sh")
    if subprocess.run([*under, "true"], capture_output=True, check=False).returncode:
        pytest.skip("shared memory cannot be taken away here")
    place.measures("one")

    assert place.run(under=under) == 0, place.said

    assert len(place.rows()) == 1
    told("no /dev/shm", 1, len(place.rows()))


@pytest.mark.parametrize("limit", [12, 16, 20, 24, 32, 48, 64] if LONG else [16])
def test_few_open_files(limit: int, place: Place, told: Callable[..., None]) -> None:
    """A run that can do with them, or a sentence that says what is lacking."""
    place.measures("one")
    code = place.run(under=("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh"))

    assert "Traceback" not in place.said
    assert "INTERNALERROR" not in place.said
    assert code == 0 or "open files" in place.said
    rows, expected = len(place.rows()), int(code != USAGE)
    if code:  # to remove a folder takes files too; the next run does it
        assert place.run() == 0, place.said
    assert place.left() == []
    told(f"ulimit: {limit} open files", expected, rows)


@pytest.mark.parametrize("more", [1, 2, 3, 4, 5, 6, 8] if LONG else [2])
def test_few_processes(
    more: int, place: Place, few_processes: Callable[[int], Sequence[str]], told: Callable[..., None]
) -> None:
    place.measures("one")
    code = place.run(under=few_processes(more))

    assert "Traceback" not in place.said
    assert "INTERNALERROR" not in place.said
    assert code == 0 or "Resource temporarily unavailable" in place.said or "can't start new thread" in place.said
    assert place.left() == []
    told(f"ulimit: {more} processes", int(code != USAGE), len(place.rows()))


@pytest.fixture
def few_processes(tmp_path: Path) -> Iterator[Callable[[int], Sequence[str]]]:
    """A command under which no more than so many processes (and threads) run; root has no limit but that of a control group."""
    if not ROOT:
        mine = subprocess.run(["ps", "-L", "-u", str(os.getuid())], capture_output=True, text=True, check=True)
        yield lambda more: ("sh", "-c", f'ulimit -u {len(mine.stdout.splitlines()) + more}; exec "$@"', "sh")
        return
    group = CGROUP / f"quantbench-{os.getpid()}"
    try:
        group.mkdir()
        (group / "pids.max").write_text("max")
    except OSError as error:
        pytest.skip(f"root has no limit of processes, and no control group can be made ({error.strerror})")
    yield lambda more: ("sh", "-c", f'echo {more} > {group}/pids.max; echo $$ > {group}/cgroup.procs; exec "$@"', "sh")
    group.rmdir()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"] if LONG else [">&- 2>&- <&-"])
@pytest.mark.parametrize("face", ["quantbench", "pytest"] if LONG else ["quantbench"])
def test_closed_streams(face: str, closed: str, place: Place, told: Callable[..., None]) -> None:
    """The run is measured and stored all the same."""
    place.measures("one")
    code = place.run(under=("sh", "-c", f'exec "$@" {closed}', "sh"), face=face)

    assert code == 0, place.said
    assert "Traceback" not in place.said
    assert len(place.rows()) == 1
    assert place.left() == []
    told(f"closed: {closed}", 1, len(place.rows()))


@long
def test_a_clock_that_was_set_back(place: Place, told: Callable[..., None]) -> None:
    """What was begun last is resumed, though it says that it began first."""
    place.measures("one")
    assert place.run() == 0, place.said
    place.measures("one", "sigkill-loading")
    assert place.run(first=CLOCK_BACK) == 1
    place.measures("one", "sigkill-loading", "two")

    assert place.run("resume=last", first=CLOCK_BACK) == 1

    runs = place.frame("runs").sort_values("run_number")
    assert runs.started_at.is_monotonic_decreasing
    assert runs.finished.tolist() == [1, 3]
    assert place.left() == []
    told("clock set back", 4, len(place.frame()))
