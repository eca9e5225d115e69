"""The command as it is installed, in a folder of a test's own, and code that says so where it is run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantbench.models import MODELS

Command = Callable[..., subprocess.CompletedProcess[str]]

SCRIPT = "import sys\nfrom quantbench.cli import main\nsys.exit(main())\n"
"""What pip writes for the command."""


class Trap:
    """A file that appears where code is run that must not be: a pickle of this when it is loaded, its source when imported."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)

    @property
    def source(self) -> str:
        """Python that shuts the trap."""
        return f"import pathlib\npathlib.Path({str(self.marker)!r}).touch()\n"

    @property
    def shut(self) -> bool:
        """Whether something was run."""
        return self.marker.exists()


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "code-was-run")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The current folder of the command."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.fixture
def quantbench(tmp_path: Path, here: Path, stub_path: Path, shared_cache: Path) -> Command:
    """Run ``quantbench ARGUMENTS`` in ``here``, with the stub methods installed; keywords are variables of the environment."""
    script = tmp_path / "bin" / "quantbench"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    environment = {
        **os.environ, "PYTHONPATH": str(stub_path), "QUANTBENCH_CACHE": str(shared_cache), "STUB_UNWATCHED": "1",
    }  # fmt: skip

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *arguments]
        env = environment | variables
        return subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def checkpoint(here: Path) -> Path:
    """A whole checkpoint from elsewhere, which works."""
    folder = here / "theirs"
    shutil.copytree(MODELS["canary"].folder(), folder, ignore=shutil.ignore_patterns("*.py", "*.md", "__pycache__"))
    return folder
