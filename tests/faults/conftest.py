"""What every fault needs: runs in processes of their own, what is left of them, and the table of all faults at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from uuid import uuid4

import pandas as pd
import psutil
import pytest

import quantbench

ALL = os.environ.get("QUANTBENCH_FAULTS", "") == "all"
"""Whether the long form was asked for, as ``tox -e faults`` does: else each kind of fault has one or two examples."""

SOUND = ("exact", "one", "two", "three", "four", "five")[: 6 if ALL else 3]
"""Variants that nothing is wrong with."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux has it
HERE = Path(__file__).parent
MAIN = "from quantbench.cli import main; main()"
WITHOUT_TORCH = "from quantbench.measuring.preload import keep_torch_out; keep_torch_out()\n"
"""Importing torch takes longer than all that such a run does."""

PLUGIN = next((each.name for each in entry_points(group="pytest11") if each.value == "quantbench.plugin"), "quantbench.plugin")
"""As pytest finds it: by its entry point where it is installed."""

FACES = {
    "quantbench": ("", ["-c", MAIN, "run"]),
    "pytest": ("quantbench-", ["-m", "pytest", "-p", PLUGIN, "--pyargs", "quantbench.suite"]),
}
"""By face, what its options begin with, and its command after the name of Python."""

MATRIX = """\
control = false
prompts = ["two"]
[methods]
fault = {precisions}
[conditions]
reference = "fault/exact"
output_tokens = 2
answer_tokens = 2
continuation_tokens = 2
threads = 1
"""
Rows = set[tuple[str, int, str]]
"""Scenario, repeat and status of the rows of a run."""

_GONE_WITHIN_S = 30.0


@dataclass(slots=True)
class Line:
    """One line of the table of faults; ``survived`` and the rows are those of the runs that had the fault."""

    fault: str
    injected: int = 0
    survived: int = 0
    expected: int = 0
    found: int = 0


LINES: dict[str, Line] = {}


@pytest.fixture
def told() -> Callable[..., None]:
    """Count a fault that was injected, and survived: ``told(fault, expected, found)``, with the rows of its run."""

    def tell(fault: str, expected: int, found: int, *, survived: bool = True) -> None:
        line = LINES.setdefault(fault, Line(fault))
        line.injected += 1
        line.survived += survived
        line.expected += expected
        line.found += found

    return tell


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, in the long form."""
    if not ALL or not LINES:
        return
    width = max(len(name) for name in LINES)
    heads = ("injected", "survived", "rows expected", "rows found")
    terminalreporter.section("faults")
    terminalreporter.line("  ".join(["fault".ljust(width), *heads]))
    for line in LINES.values():
        cells = zip(heads, (line.injected, line.survived, line.expected, line.found), strict=True)
        terminalreporter.line("  ".join([line.fault.ljust(width), *(str(count).rjust(len(head)) for head, count in cells)]))


@dataclass
class Place:
    """A folder in which runs are started, with their own cache and folder for temporary files, and a mark on all processes."""

    folder: Path
    environment: dict[str, str]
    mark: str = field(default_factory=lambda: f"qb{uuid4().hex[:12]}")

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def temporary(self) -> Path:
        return Path(self.environment["TMPDIR"])

    @property
    def cache(self) -> Path:
        return Path(self.environment["QUANTBENCH_CACHE"])

    @property
    def notes(self) -> Path:
        return self.folder / "notes"

    def measures(self, *precisions: str) -> None:
        """Write the matrix of the runs to come."""
        (self.folder / "matrix.toml").write_text(MATRIX.format(precisions=list(precisions)))

    def start(
        self, *options: str, face: str = "quantbench", under: Sequence[str] = (), first: str = "",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:  # fmt: skip
        """Start a run, ``under`` another command, or with some Python ``first``; what it prints is in ``said``."""
        prefix, main = FACES[face]
        given = ("matrix=matrix.toml", "profile=quick", "no-probes", "no-energy", *options)
        asked = [f"--{prefix}{option}" for option in given]
        if first:
            main = ["-c", first + MAIN, "run"]
        marks = {"FAULT_MARK": self.mark, "FAULT_NOTES": str(self.notes)}
        with (self.folder / "said").open("w") as stream:
            return subprocess.Popen(
                [*under, sys.executable, *main, *asked], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=stream,
                stderr=subprocess.STDOUT, text=True, env={**os.environ, **self.environment, **marks, **(env or {})},
            )  # fmt: skip

    def run(self, *options: str, **how: object) -> int:
        """The exit code of a run."""
        return self.start(*options, **how).wait(600)  # type: ignore[arg-type]

    def start_inline(self, *options: str, under: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start a run in one process, without torch."""
        return self.start("engine=inline", *options, under=under, first=WITHOUT_TORCH)

    def run_inline(self, *options: str, under: Sequence[str] = ()) -> int:
        """The exit code of such a run."""
        return self.start_inline(*options, under=under).wait(600)

    @property
    def said(self) -> str:
        """What the latest run printed, as one line."""
        return " ".join((self.folder / "said").read_text(errors="replace").split())

    def frame(self, table: str = "scenarios") -> pd.DataFrame:
        """A table, read by plain pandas."""
        return pd.read_parquet(self.results / table)

    def rows(self) -> Rows:
        """All rows; each is there once, and has its samples where it was measured."""
        if not any(self.results.glob("scenarios/*/*.parquet")):
            return set()
        frame = self.frame()
        keys = list(zip(frame.scenario_id, frame.repeat, frame.status, strict=True))
        assert len(keys) == len(set(keys))
        measured = {(key, repeat) for key, repeat, status in keys if status == "ok"}
        samples = self.frame("samples") if measured else pd.DataFrame({"scenario_id": [], "repeat": []})
        assert set(zip(samples.scenario_id, samples.repeat, strict=True)) == measured
        return set(keys)

    def processes(self) -> list[psutil.Process]:
        """All living processes that a run of this place has started, whoever their parent is now."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("FAULT_MARK") == self.mark:
                    found.append(process)
        return found

    def left(self) -> list[str]:
        """What is left of all runs: temporary folders, half-made artifacts and rows, shared memory; processes after a while."""
        until = time.monotonic() + _GONE_WITHIN_S
        while (processes := self.processes()) and time.monotonic() < until:
            time.sleep(0.05)
        files = [
            *self.temporary.glob("quantbench-*"), *self.cache.glob("quantbench-*"), *self.cache.glob("*/.*-*"),
            *SHARED_MEMORY.glob(f"{self.mark}*"), *self.results.rglob(".*"),
        ]  # fmt: skip
        return [*map(str, files), *(f"process {each.pid}" for each in processes)]


@pytest.fixture(scope="session")
def fault_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on the import path, is an installed distribution with the methods that go wrong."""
    folder = tmp_path_factory.mktemp("faults")
    for path in (HERE / "fault_method.py", HERE.parent / "stub_method.py"):
        shutil.copy(path, folder)
    (folder / "quantbench").symlink_to(Path(quantbench.__file__).parent)
    info = folder / "fault_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fault-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[quantbench.methods]\nfault = fault_method\n[quantbench.runtimes]\nfault = fault_method\n"
    )
    return folder


def _place(folder: Path, import_path: Path, references: Path | None) -> Place:
    """A new place; without references its first run makes them."""
    for each in (folder, folder / "tmp", folder / "cache"):
        each.mkdir()
    if references:
        (folder / "cache" / "reference").symlink_to(references)
    return Place(folder, {
        "PYTHONPATH": str(import_path), "QUANTBENCH_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "tmp"),
        "STUB_UNWATCHED": "1", "PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1",
    })  # fmt: skip


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, fault_path: Path) -> Place:
    """The place of a run that nothing happened to, in one process; its reference serves all others."""
    made = _place(tmp_path_factory.mktemp("alone") / "place", fault_path, None)
    made.measures(*SOUND)
    assert made.run_inline() == 0, made.said
    return made


@pytest.fixture
def new_place(tmp_path: Path, fault_path: Path, alone: Place) -> Iterator[Callable[..., Place]]:
    """Make a place; ``cold`` is one that has no reference yet. Nothing of it lives on after the test."""
    places = []

    def make(name: str = "place", *, cold: bool = False) -> Place:
        places.append(_place(tmp_path / name, fault_path, None if cold else alone.cache / "reference"))
        return places[-1]

    yield make
    for each in places:
        for process in each.processes():
            with suppress(psutil.Error):
                process.kill()


@pytest.fixture
def place(new_place: Callable[..., Place]) -> Place:
    """One place."""
    return new_place()
