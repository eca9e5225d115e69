"""What a command takes from start to finish: wall seconds, and the most memory of its process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ratios import Result


class Spent(NamedTuple):
    """Wall seconds, peak memory in bytes, and the text that was printed."""

    seconds: float
    peak_bytes: int
    text: str

    def results(self, name: str, *, seconds: float, megabytes: float) -> Iterator[Result]:
        """Two results with these limits."""
        yield Result(f"{name} (in s)", f"{self.seconds:.2f} s", "", self.seconds, f"<= {seconds:g}")
        peak = self.peak_bytes / 1e6
        yield Result("the same, peak memory (in MB)", f"{peak:.0f} MB", "", peak, f"<= {megabytes:g}")


def spent(command: Sequence[str], folder: Path, *, codes: Sequence[int] = (0,), **variables: str) -> Spent:
    """Run a command in ``folder``; the harness ends where it does not end with one of ``codes``."""
    environment = {**os.environ, "PYTEST_ADDOPTS": "", **variables}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile() as out:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read().decode(errors="replace")
    if process.returncode not in codes:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}:\n{text[-3000:]}")
    return Spent(seconds, usage.ru_maxrss * 1024, text)


def quantbench(*arguments: str) -> list[str]:
    """The command ``quantbench`` with these arguments."""
    return [sys.executable, "-c", "from quantbench.cli import main; main()", *arguments]
