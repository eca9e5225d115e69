"""``quantbench export``: where it writes, which run, and what is said when there is nothing to write."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quantbench.cli import export as module
from quantbench.cli.app import app
from quantbench.results.schema import schema

ROWS = (("torch/fp32", "ok", 50.0), ("gguf/q8_0", "ok", 200.0), ("gguf/q2_k", "oom", None), ("torchao/fp8", "skipped", None))


def _write(root: Path, table: str, run_id: str, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = root / table / "date=2026-01-01"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema(table)), folder / f"{run_id}-0.parquet")


def _scenarios(root: Path, run_id: str, day: int, rows: Any = ROWS) -> None:
    records = []
    for variant, status, tps in rows:
        method, precision = variant.split("/")
        records.append({
            "run_id": run_id, "started_at": datetime(2026, 1, day, tzinfo=UTC), "scenario_key": "k",
            "scenario_id": f"canary/{method}-{precision}/ten", "model": "canary", "method": method, "precision": precision,
            "prompts": "ten", "repeat": 0, "status": status, "reason": None if status == "ok" else "=why", "control": False,
            "device": "cpu", "decode_tps": tps, "versions": "{}", "schema_version": 1,
        })  # fmt: skip
    _write(root, "scenarios", run_id, records)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two runs, of which the later has no samples and measured nothing."""
    root = tmp_path / "results"
    _scenarios(root, "early", 1)
    _scenarios(root, "late", 2, rows=ROWS[2:])
    sample = {"run_id": "early", "scenario_id": "s", "scenario_key": "k", "repeat": 0, "phase": "gap", "round": 0, "index": 0}
    _write(root, "samples", "early", [{**sample, "value_s": 0.25}])
    return root


def _run(results: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["export", "--results", str(results), *arguments])
    return result.exit_code, result.stdout, result.stderr


def _tree(root: Path) -> dict[str, str]:
    return {str(path): sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def test_to_stdout_by_default(results: Path) -> None:
    code, stdout, stderr = _run(results, "--to", "bmf", "--run", "early")
    assert code == 0
    assert json.loads(stdout)["canary/gguf-q8_0/ten"] == {"decode_tps": {"value": 200.0}}
    assert stderr == "quantbench: 2 of 4 rows have no figures: 1 oom, 1 skipped\n"


def test_the_latest_run_unless_another_is_asked_for(results: Path) -> None:
    runs = [
        {row["run_id"] for row in csv.DictReader(io.StringIO(_run(results, "--to", "csv", *more)[1]))}
        for more in ((), ("--run", "early"))
    ]
    assert runs == [{"late"}, {"early"}]


def test_a_table_keeps_what_failed(results: Path) -> None:
    code, stdout, stderr = _run(results, "--to", "jsonl", "--run", "early")
    assert (code, stderr) == (0, "")
    rows = [json.loads(line) for line in stdout.splitlines()]
    assert [(row["status"], row["reason"]) for row in rows][1:] == [("ok", None), ("oom", "=why"), ("skipped", "=why")]


def test_a_file_is_replaced_whole_and_the_results_are_not_touched(results: Path, tmp_path: Path) -> None:
    before, file = _tree(results), tmp_path / "out" / "bench.json"
    file.parent.mkdir()
    file.write_text("x" * 10_000)
    arguments = ("--to", "github-action-benchmark", "--better", "higher", "--run", "early")
    with file.open() as reader:
        code, stdout, _ = _run(results, *arguments, "-o", str(file))
        assert (code, stdout, reader.read()) == (0, "", "x" * 10_000)
    assert file.read_text(encoding="utf-8") == _run(results, *arguments)[1]
    assert [path.name for path in file.parent.iterdir()] == ["bench.json"]
    assert _tree(results) == before


def test_a_link_stays_a_link(results: Path, tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    assert _run(results, "--to", "csv", "-o", str(tmp_path / "link.csv"))[0] == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text(encoding="utf-8").startswith("run_id,")


def test_what_breaks_in_the_middle_leaves_the_file_as_it_was(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        yield "half"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "exported", broken)
    file = tmp_path / "bench.csv"
    file.write_text("before")
    code, _, stderr = _run(results, "--to", "csv", "-o", str(file))
    assert (code, file.read_text(encoding="utf-8")) == (2, "before")
    assert "bench.csv cannot be written (No space left on device)" in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.csv", "results"]


@pytest.mark.parametrize("place", ["none/out.csv", "results", "fifo", "file/out.csv", "results/samples/out.csv"])
def test_a_place_that_takes_no_file(results: Path, tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    before = _tree(results)
    code, stdout, stderr = _run(results, "--to", "csv", "-o", str(tmp_path / place))
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert place in stderr
    assert _tree(results) == before


def test_another_table(results: Path) -> None:
    code, stdout, _ = _run(results, "--to", "csv", "--table", "samples", "--run", "early")
    (row,) = csv.DictReader(io.StringIO(stdout))
    assert (code, row["value_s"]) == (0, "0.25")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "xml"], "known: bmf, csv, github-action-benchmark, jsonl, model-card, pytorch-hud"),
        (["--to", "bmf", "--run", "erly"], "unknown run 'erly'; did you mean 'early'?"),
        (["--to", "bmf", "--table", "samples", "--run", "early"], "csv and jsonl take any"),
        (["--to", "github-action-benchmark"], "one with --better lower and one with --better higher"),
        (["--to", "bmf", "--metric", "decode_tps,kld_maen"], "did you mean 'kld_mean'"),
    ],
)  # fmt: skip
def test_usage_errors(results: Path, arguments: list[str], said: str) -> None:
    code, stdout, stderr = _run(results, *arguments)
    assert (code, stdout) == (2, "")
    assert said in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--to", "csv", "--table", "nonesuch"], ["--to", "bmf", "--better", "more"]])
def test_options_that_typer_refuses(results: Path, arguments: list[str]) -> None:
    assert _run(results, *arguments)[0] == 2


def test_without_results_there_is_a_sentence_and_code_4(tmp_path: Path) -> None:
    code, stdout, stderr = _run(tmp_path / "nothing", "--to", "csv", "-o", str(tmp_path / "out.csv"))
    assert (code, stdout) == (4, "")
    assert stderr.startswith("quantbench: no results of table 'scenarios' under")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "bmf"], "run late measured nothing for bmf; 2 of 2 rows have no figures: 1 oom, 1 skipped"),
        (["--to", "bmf", "--run", "early", "--metric", "kld_mean"], "2 of 4 rows have no figures"),
        (["--to", "csv", "--table", "samples"], "run late kept no rows in table 'samples'"),
        (["--to", "csv", "--table", "outputs"], "no results of table 'outputs'"),
    ],
)
def test_a_run_without_what_is_asked_for(results: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    code, stdout, stderr = _run(results, *arguments, "-o", str(tmp_path / "out"))
    assert (code, stdout) == (4, "")
    assert said in stderr
    assert not (tmp_path / "out").exists()


def test_the_hud_gets_a_run_in_which_all_failed(results: Path) -> None:
    code, stdout, _ = _run(results, "--to", "pytorch-hud")
    (record,) = json.loads(stdout)
    assert (code, record["metric"]["name"]) == (0, "FAILURE_REPORT")


def test_a_terminal_gets_no_escapes_and_a_pipe_gets_all(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from quantbench import export

    text = "a\tb\n\x1b[31mred\x9b\r"
    odd = {"odd": export.Exporter(name="odd", write=lambda *_: iter([text]))}
    monkeypatch.setattr(export, "EXPORTERS", odd)
    monkeypatch.setattr(module, "EXPORTERS", odd)
    module.export("odd", results=str(results))
    assert capsys.readouterr().out == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    module.export("odd", results=str(results))
    assert capsys.readouterr().out == "a\tb\n\\x1b[31mred\\x9b\\r"


def test_a_plug_in_is_found(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantbench import export
    from quantbench.core.registry import Registry

    own = export.Exporter(name="count", write=lambda rows, columns: iter([f"{len(list(rows))} x {len(columns)}\n"]))
    registry: Registry[Any] = Registry("quantbench.export", export.Exporter, "export format")
    points = {"quantbench.export": [_Point(own)]}
    monkeypatch.setattr("quantbench.core.registry.entry_points", lambda group: points.get(group, []))
    assert registry["count"] is own
    monkeypatch.setattr(export, "EXPORTERS", registry)
    monkeypatch.setattr(module, "EXPORTERS", registry)
    assert _run(results, "--to", "count")[:2] == (0, f"2 x {len(schema('scenarios'))}\n")


class _Point:
    """An entry point of no distribution."""

    dist = None

    def __init__(self, found: object) -> None:
        self._found = found

    def load(self) -> object:
        return self._found


def test_a_missing_folder_is_named_as_it_was_given(results: Path, tmp_path: Path) -> None:
    code, _, stderr = _run(results, "--to", "csv", "-o", str(tmp_path / "none" / "out.csv"))
    assert code == 2
    assert "none/out.csv cannot be written (No such file or directory)" in " ".join(stderr.split())
