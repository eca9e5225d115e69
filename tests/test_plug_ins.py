"""A method, a metric and a runtime of one's own are one file each, and are seen everywhere without another edit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "bench" / "examples"
MODULES = ("own_method", "own_metric", "own_runtime")
POINTS = (
    "[quantbench.methods]\nrounded = own_method\nparrot = own_runtime\n"
    "[quantbench.metrics]\nload_average = own_metric\n[quantbench.runtimes]\nparrot = own_runtime\n"
)


class Owner:
    """Whoever installed the examples, as a distribution of some version."""

    def __init__(self, folder: Path, cache: Path, warm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
        self._cache = cache
        self._warm = warm
        self._site = folder / "site"
        self._folder = folder
        self._site.mkdir()
        for name in MODULES:
            shutil.copy(EXAMPLES / f"{name}.py", self._site)
        (self._site / "quantbench").symlink_to(ROOT / "quantbench")
        self.install("own-things", "1.0", POINTS)
        self.install("parrot-engine", "0.1", "")

    def install(self, name: str, version: str, points: str) -> None:
        """Have a distribution of that version."""
        for old in self._site.glob(f"{name.replace('-', '_')}-*.dist-info"):
            shutil.rmtree(old)
        info = self._site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(points)

    def run(self, *arguments: str, code: int = 0) -> str:
        """What ``quantbench`` prints."""
        command = [sys.executable, "-c", "from quantbench.cli import main; main()", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(self._site), "QUANTBENCH_CACHE": str(self._cache)}
        done = self._warm(command, cwd=self._folder, env=environment)
        assert done.returncode == code, done.stdout
        return done.stdout


MATRIX = """
control = false
prompts = ["two"]
[methods]
rounded = ["m7", "m3"]
parrot = ["int8"]
[conditions]
output_tokens = 4
answer_tokens = 4
"""
MEASURE = ("run", "--matrix=matrix.toml", "--profile=quick", "--no-probes", "--no-energy", "--engine=inline", "-k", "decode")


@pytest.fixture(scope="module")
def owner(
    tmp_path_factory: pytest.TempPathFactory, shared_cache: Path, warm: Callable[..., subprocess.CompletedProcess[str]]
) -> Owner:
    """The examples, installed, and measured twice: the second time beside a newer engine."""
    made = Owner(tmp_path_factory.mktemp("own"), shared_cache, warm)
    (made._folder / "matrix.toml").write_text(MATRIX)
    made.run(*MEASURE)
    made.install("own-things", "1.1", POINTS)
    made.run(*MEASURE)
    return made


@pytest.fixture(scope="module")
def rows(owner: Owner) -> pd.DataFrame:
    """What plain pandas reads."""
    frame = pd.read_parquet(owner._folder / "results" / "scenarios")
    return frame.sort_values("run_number").set_index("scenario_id")


def test_they_are_in_the_parquet_files(rows: pd.DataFrame) -> None:
    assert set(rows.status) == {"ok"}, rows.reason.unique()
    assert {"canary/rounded-m7/two", "canary/rounded-m3/two", "canary/parrot-int8/two"} <= set(rows.index)
    seven, three = (rows.loc[f"canary/rounded-{name}/two"].iloc[0] for name in ("m7", "m3"))
    assert 0 < seven.kld_mean < three.kld_mean
    assert (rows.answer_tokens_mean > 0).all()
    assert (rows.load_average_max >= 0).all()
    assert rows.loc["canary/parrot-int8/two"].predicted_weight_bytes.tolist() == [2048, 2048]


def test_their_versions_are_stored_and_an_upgrade_is_noticed(owner: Owner, rows: pd.DataFrame) -> None:
    first, second = (json.loads(text) for text in rows.versions.unique())
    assert (first["own-things"], second["own-things"]) == ("1.0", "1.1")
    assert first["parrot-engine"] == second["parrot-engine"] == "0.1"
    runs = rows.run_id.unique()
    assert "own-things 1.0 became 1.1" in owner.run("compare", runs[0], runs[1], code=4)
    said = owner.run(*MEASURE, "--resume", runs[0], code=2)
    assert "with own-things 1.0 and not 1.1" in said


def test_they_are_in_the_tables_and_the_report(owner: Owner) -> None:
    text = owner.run("tables", "measured")
    for shown in ("rounded/m7", "parrot/int8", "Load", "Answer, tokens"):
        assert shown in text
    owner.run("report", "-o", "report.html")
    page = (owner._folder / "report.html").read_text()
    for shown in ("rounded/m7", "parrot/int8", "Answer, tokens"):
        assert shown in page


def test_the_metrics_own_gate_is_compared_unasked(owner: Owner, rows: pd.DataFrame) -> None:
    runs = rows.run_id.unique()
    assert "answer_tokens_mean" in owner.run("compare", runs[0], runs[1], "--all", code=4)


def test_the_runtimes_own_formula_is_planned(owner: Owner) -> None:
    planned = json.loads(owner.run("plan", "llama-2-7b", "--method", "parrot", "--context", "1000", "--format", "json"))
    assert [(each["weight_bytes"], each["kv_cache_bytes"], each["peak_bytes"]) for each in planned] == [(32000, 1000, 33000)]
