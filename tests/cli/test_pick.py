"""``quantbench pick``: from a folder or a repository to one file and the command that runs it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from quantbench.cli import pick as picking
from quantbench.cli import racing
from quantbench.cli.app import app
from quantbench.core.scenario import PROFILES, Spec, Variant
from quantbench.methods import METHODS, Settings
from quantbench.models.checkpoint import resolve
from quantbench.planning import lineup as lineups
from quantbench.running import session as sessions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

PRECISIONS = ("f16", "q8_0", "q2_k")
COMMIT = "1" * 40


@pytest.fixture
def pick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``quantbench pick ARGUMENTS`` in an empty folder, with few prompts in both rounds."""
    monkeypatch.setattr(racing, "FIRST", ("two", "brief"))
    monkeypatch.setattr(racing, "LAST", ("ten", "quick"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *arguments: CliRunner().invoke(app, ["pick", *map(str, arguments)])


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure once, in this process, which has torch imported already, where neither speeds nor processes are the point."""
    for name in ("brief", "quick"):
        monkeypatch.setitem(PROFILES, name, replace(PROFILES[name], min_rounds=1, max_rounds=1))
    usual = picking._options
    monkeypatch.setattr(picking, "_options", lambda *asked: replace(usual(*asked), engine="inline", output_tokens=8))


@pytest.fixture
def files(artifacts: None, tmp_path: Path) -> Path:
    """A folder with some of the canary's GGUF files."""
    folder = tmp_path / "canary-GGUF"
    folder.mkdir()
    saver = METHODS["gguf"].saver
    assert saver
    settings = Settings(checkpoint=resolve("canary"), threads=1, context=64)
    for each in PRECISIONS:
        saver(Spec(model="canary", variant=Variant(method="gguf", precision=each)), settings, tmp_path / each)
        (tmp_path / each / f"model-{each}.gguf").rename(folder / f"canary-{each.upper()}.gguf")
    return folder


def test_a_folder_of_files_ends_with_one_line_the_rows_and_the_command(pick: Callable[..., Result], files: Path) -> None:
    done = pick(files, "--max-kld", "0.01", "--memory", "8MB")
    assert done.exit_code == 0, done.output
    said, rows = done.stderr, pd.read_parquet("results/scenarios")
    assert "canary-GGUF: 3 candidates, 1 too large for 8 MB or this machine, 2 to measure" in said
    assert "compared with F16, the most exact file here" in said
    assert re.search(r"out: Q2_K, KLD surely above 0\.01", said)
    assert done.stdout.startswith("Under 8 MB ship Q8_0: 6.14 MB, ")
    assert f"\nllama-server -m {files / 'canary-Q8_0.gguf'}\n" in done.stdout
    assert max(len(line) for line in done.output.splitlines() if str(files) not in line) <= 100
    measured = sorted(zip(rows["prompts"], rows["artifact"], rows["status"], strict=True))
    assert measured == [("ten", "Q8_0", "ok"), ("two", "Q2_K", "ok"), ("two", "Q8_0", "ok")]
    reasons = [json.loads(each) for each in rows["null_reasons"]]
    assert all("not with profile brief" in each["artifact_audit"] for each in reasons)
    again = CliRunner().invoke(app, ["recommend", "--max-kld", "0.01", "--memory", "8MB"])
    assert again.stdout.splitlines()[0] == done.stdout.splitlines()[0]
    assert sorted(each.name for each in files.iterdir()) == [f"canary-{each.upper()}.gguf" for each in sorted(PRECISIONS)]


@pytest.fixture
def hub(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[str]]:
    """The files as a repository of a hub whose client is real but for the network; what its cache holds now."""
    real: Any = pytest.importorskip("huggingface_hub")
    root = tmp_path / "hub"
    repository = root / "models--org--canary-GGUF"
    for module in ("constants", "utils._cache_manager"):  # the second has taken it over from the first when it was imported
        monkeypatch.setattr(f"huggingface_hub.{module}.HF_HUB_CACHE", str(root))
    entries = repository / "snapshots" / COMMIT

    def fetch(_: str, filename: str, *, revision: str | None) -> str:
        assert revision is None
        entry, content = entries / filename, (files / filename).read_bytes()
        if not entry.exists():
            for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
                (repository / folder).mkdir(parents=True, exist_ok=True)
            (repository / "refs" / "main").write_text(COMMIT)
            blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            entry.symlink_to(blob)
        return str(entry)

    sizes = {each.name: each.stat().st_size for each in files.iterdir()}
    monkeypatch.setattr(lineups, "file_sizes", lambda _: sizes)
    monkeypatch.setattr(real, "list_repo_files", lambda *_, **__: list(sizes))
    monkeypatch.setattr(real, "hf_hub_download", fetch)
    fetch("", "canary-Q2_K.gguf", revision=None)
    return lambda: {each.name for each in entries.iterdir()}


@pytest.mark.usefixtures("inline")
def test_what_lost_is_deleted_again_but_what_was_there_before_stays(
    pick: Callable[..., Result], hub: Callable[[], set[str]]
) -> None:
    done = pick("org/canary-GGUF", "--max-kld", "0.01", "--memory", "8MB")
    assert done.exit_code == 0, done.output
    assert "to download, about" in done.stderr
    assert hub() == {"canary-Q2_K.gguf", "canary-Q8_0.gguf"}  # not F16, with which they were compared
    assert re.search(r"^llama-server -m \S+/canary-Q8_0\.gguf$", done.stdout, re.MULTILINE)


@pytest.mark.usefixtures("inline")
def test_limits_that_nothing_keeps_name_the_nearest(pick: Callable[..., Result], files: Path) -> None:
    done = pick(files, "--max-kld", "0.000001", "--memory", "3MB")
    assert done.exit_code == 4
    assert done.stdout.startswith("Ship none: none keeps KLD up to 1.0e-06, weights within 3 MB; nearest is Q2_K, ")
    assert "llama-server" not in done.stdout


def test_a_folder_in_which_nothing_fits_is_one_sentence_and_nothing_is_measured(
    pick: Callable[..., Result], files: Path, tmp_path: Path
) -> None:
    done = pick(files, "--memory", "1MB")
    assert (done.exit_code, done.stdout) == (4, "")
    said = "quantbench: none of 3 candidates of canary-GGUF fits 1 MB or this machine; the smallest is Q2_K, 2.39 MB\n"
    assert done.stderr.replace(str(tmp_path), "") == said
    assert not (tmp_path / "here" / "results").exists()


@pytest.mark.parametrize("arguments", ["--max-kld -1", "--memory much", "--original lstm", "--device tpu"])
def test_bad_input_is_one_sentence(pick: Callable[..., Result], files: Path, arguments: str) -> None:
    done = pick(files, *arguments.split())
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "unexpected" not in done.stderr


def test_a_hub_that_cannot_be_reached_is_one_sentence(pick: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = pytest.importorskip("huggingface_hub")

    def refused(*_: object, **__: object) -> None:
        raise OSError("Connection refused")

    monkeypatch.setattr(real, "model_info", refused)
    monkeypatch.setattr(real, "snapshot_download", refused)
    done = pick("org/model-GGUF")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "quantbench: model 'org/model-GGUF' could not be fetched from the hub (Connection refused); "
        "check the name, the network and HF_TOKEN\n"
    )


@pytest.mark.usefixtures("inline")
def test_what_was_measured_before_ctrl_c_is_kept(
    pick: Callable[..., Result], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[bool] = []
    finish = sessions.Session.finish

    def noted(session: sessions.Session, *, interrupted: bool) -> None:
        finished.append(interrupted)
        finish(session, interrupted=interrupted)

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sessions.Session, "finish", noted)
    monkeypatch.setattr(sessions.Session, "measure_again", stopped)
    done = pick(files, "--max-kld", "0.01", "--memory", "8MB")
    assert done.exit_code == 130
    assert finished == [False, True]
    assert len(pd.read_parquet("results/scenarios")) == 3
