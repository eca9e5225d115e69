"""What several test modules share: a cache of their own, and methods that need no model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
import pandas.core.arrays.arrow.extension_types  # registered once a process, and pytester forgets what a test imported
import pytest
from hypothesis import settings

import quantbench
from quantbench.core.cache import cache_root
from quantbench.core.errors import UsageError
from quantbench.core.machine import require_device

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=80)  # shared machines stall; no database
settings.load_profile("repeatable")

_USERS_CACHE = cache_root()
PLUG_INS = ("stub_method", "odd_method")
ENTRY_POINTS = "[quantbench.methods]\nstub = stub_method\nodd = odd_method\n[quantbench.metrics]\nstub = stub_method\n"


@pytest.fixture(scope="session")
def stub_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on the import path, is an installed distribution which publishes the stub and the odd methods."""
    folder = tmp_path_factory.mktemp("stub")
    for name in PLUG_INS:
        shutil.copy(Path(__file__).parent / f"{name}.py", folder)
    (folder / "quantbench").symlink_to(Path(quantbench.__file__).parent)  # children test this one, whichever is installed
    info = folder / "stub_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stub-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the session, so that references and GGUF files are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def users_cache() -> Path:
    """The user's own cache: GGUF files are content-addressed, and the converter is fetched once a machine."""
    return _USERS_CACHE


@pytest.fixture
def artifacts(users_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test use the user's own cache."""
    monkeypatch.setenv("QUANTBENCH_CACHE", str(users_cache))


@pytest.fixture
def results(pytester: pytest.Pytester) -> Callable[..., pd.DataFrame]:
    """Read the tables of a run by plain pandas, as an analyst would."""

    def read(table: str = "scenarios", folder: str = "results") -> pd.DataFrame:
        return pd.read_parquet(pytester.path / folder / table)

    return read


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` where there is no GPU, or no torch that could use it; say which."""
    if item.get_closest_marker("gpu") and (reason := _no_gpu()):
        pytest.skip(reason)


@cache
def _no_gpu() -> str:
    try:
        require_device("cuda", torch=True)
    except UsageError as error:
        return f"needs a GPU: {error}"
    return ""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's cache unless it asks for ``artifacts``."""
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / "cache"))
