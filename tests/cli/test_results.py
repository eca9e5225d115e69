"""``quantbench tables`` and ``recommend``: the decision first, and what is said when there is nothing to decide on."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import pytest
from typer.testing import CliRunner

from quantbench import load
from quantbench.advice.decision import RULE, decide
from quantbench.advice.headline import headline
from quantbench.cli.app import app
from quantbench.cli.results import tables
from quantbench.results.schema import schema
from quantbench.tables.render import FORMATS

if TYPE_CHECKING:
    from pathlib import Path

# variant, bits, weight bytes, decode tokens/s, KLD
ROWS = (
    ("torch/fp32", 32, 4000, 10.0, 0.0),
    ("torch/bf16", 16, 2000, 15.0, 0.0001),
    ("gguf/q8_0", 8, 1000, 30.0, 0.001),
    ("gguf/q4_k_m", 4, 600, 50.0, 0.02),
    ("gguf/q2_k", 2, 400, 60.0, 0.9),
)


def _write(root: Path, run_id: str, day: int, rows: Any = ROWS, model: str = "some/model", **changes: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = []
    for variant, bits, weight_bytes, tps, kld in rows:
        method, precision = variant.split("/")
        records.append({
            "run_id": run_id, "started_at": datetime(2026, 1, day, tzinfo=UTC), "scenario_key": "k",
            "scenario_id": f"{model}/{method}-{precision}/ten",
            "model": model, "method": method, "precision": precision, "prompts": "ten", "repeat": 0,
            "status": "ok", "control": False, "reference": "torch/fp32", "is_reference": variant == "torch/fp32", "bits": bits,
            "device": "cpu", "threads": 2, "anchor": "torch/fp32", "instrument_check": False, "cpu": "a CPU",
            "parameters": 1000, "weight_bytes": weight_bytes, "weight_bytes_running": weight_bytes,
            "bits_per_weight": 8 * weight_bytes / 1000,
            "decode_tps": tps, "decode_tps_low": tps - 1, "decode_tps_high": tps + 1,
            "kld_mean": kld, "kld_mean_se": kld / 20, "null_reasons": "{}", "versions": "{}", "schema_version": 1, **changes,
        })  # fmt: skip
    folder = root / "scenarios" / f"date=2026-01-{day:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records, schema=schema("scenarios")), folder / f"{run_id}-0.parquet")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two runs: the later one lacks the GGUF rows."""
    root = tmp_path / "results"
    _write(root, "early", 1)
    _write(root, "late", 2, rows=ROWS[:2])
    return root


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def _run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def test_formats_offered_are_those_that_can_be_rendered() -> None:
    offered = get_type_hints(tables, include_extras=False)["output"]
    assert set(get_args(offered)) == set(FORMATS)


def test_without_a_name_the_decision_its_rows_and_the_names_of_the_tables_are_shown(results: Path) -> None:
    code, stdout, stderr = _run("tables", "--results", str(results), "--run", "early")
    assert (code, stderr) == (0, "")
    frame = load(str(results))
    lines = stdout.splitlines()
    assert lines[0] == headline(decide(frame[frame["run_id"] == "early"])[0])
    assert lines[1] == "4 others: quantbench recommend --why"
    heads = ("Measured:", "gguf/q8_0 ", "TABLE ")
    start = [next(index for index, line in enumerate(lines) if line.startswith(head)) for head in heads]
    assert start == sorted(start)
    named = {line.split()[0] for line in lines[start[-1] + 1 :]}
    assert {"measured", "precision", "gguf", "methods", "claims", "all"} <= named
    assert max(map(len, lines)) <= 100


def test_as_markdown_the_decision_comes_first_too(results: Path) -> None:
    code, stdout, _ = _run("tables", "--results", str(results), "--run", "early", "--format", "md")
    assert code == 0
    frame = load(str(results))
    assert stdout.replace("\\", "").startswith(headline(decide(frame[frame["run_id"] == "early"])[0]))
    assert "| gguf/q4_k_m |" in stdout
    assert stdout.endswith("\n")
    assert not stdout.endswith("\n\n")


def test_ten_rows_are_shown_and_all_of_them_if_asked(tmp_path: Path) -> None:
    """Each has fewer bits and a higher KLD than the one before, so all are on the front."""
    rows = [("torch/fp32", 32, 4000, 10.0, 0.0), *((f"gguf/v{n}", 16, 2000 - n, 10.0, 0.0001 * (n + 1)) for n in range(20))]
    _write(tmp_path, "many", 1, rows=rows)

    def shown(*more: str) -> int:
        lines = _run("tables", "--results", str(tmp_path), *more)[1].splitlines()
        return sum(line.startswith(("gguf/v", "torch/fp32")) for line in lines)

    assert (shown(), shown("--all")) == (10, 21)


def test_the_latest_run_is_shown_unless_another_is_asked_for(results: Path) -> None:
    assert "run late" in _run("tables", "--results", str(results))[1]
    assert "run early" in _run("tables", "--results", str(results), "--run", "early")[1]


def test_one_kind_of_table(results: Path) -> None:
    text = _run("tables", "gguf", "--results", str(results), "--run", "early")[1]
    assert "Q4_K_M" in text
    assert "BF16" not in text


def test_csv_and_json_hold_data_only(results: Path) -> None:
    _, text, _ = _run("tables", "all", "--results", str(results), "--run", "early", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["table"] for row in rows if row["model"] == "some/model"} == {"measured", "precision", "gguf", "methods"}
    assert {row["table"] for row in rows if not row["model"]} == {"formats", "claims"}
    _, text, _ = _run("tables", "gguf", "--results", str(results), "--run", "early", "--format", "json")
    assert [each["table"] for each in json.loads(text)] == ["gguf"]


def test_data_formats_without_a_name_hold_every_row(results: Path) -> None:
    _, text, _ = _run("tables", "--results", str(results), "--run", "early", "--format", "json")
    [table] = json.loads(text)
    assert (table["table"], len(table["rows"])) == ("measured", len(ROWS))


@pytest.mark.parametrize(
    "command",
    [
        ["tables", "methods"], ["tables", "roofline"], ["tables", "--run", "some"], ["recommend", "--memory", "1GiB"],
        ["recommend"],
    ],
)
def test_without_results_there_is_a_sentence_and_code_4(tmp_path: Path, command: list[str]) -> None:
    code, stdout, stderr = _run(*command, "--results", str(tmp_path / "nothing"))
    assert (code, stdout) == (4, "")
    assert stderr.startswith("quantbench: no results of table 'scenarios' under")
    assert stderr.count("\n") == 1


def test_a_run_without_rows_of_that_table(results: Path) -> None:
    code, stdout, stderr = _run("tables", "roofline", "--results", str(results))
    assert (code, stdout) == (4, "")
    assert stderr == "quantbench: run late has no rows for table 'roofline'; quantbench run measures some\n"


def test_a_run_without_rows_of_a_planned_table_leaves_the_plan(results: Path) -> None:
    code, stdout, stderr = _run("tables", "gguf", "--results", str(results))
    assert (code, stderr) == (0, "")
    assert "Nothing was measured here" in stdout
    assert "2.53 GB" in stdout


@pytest.mark.parametrize("output", get_args(get_type_hints(tables, include_extras=False)["output"]))
def test_without_results_tables_show_what_was_claimed_and_planned(tmp_path: Path, output: str) -> None:
    code, stdout, stderr = _run("tables", "all", "--results", str(tmp_path / "nothing"), "--format", output)
    assert code == 0
    assert stderr.startswith("quantbench: no results of table 'scenarios' under")
    assert stderr.count("\n") == 1
    for said in ("BF16", "280GB", "2.67GiB in 2023-06", "not true today"):
        assert said in stdout
    if output in ("text", "md"):
        assert stdout.index("Number formats") < stdout.index("Precision levels") < stdout.index("GGUF quantization levels")


def test_without_results_the_tables_have_names(tmp_path: Path) -> None:
    code, stdout, stderr = _run("tables", "--results", str(tmp_path / "nothing"))
    assert code == 4
    assert stderr.startswith("quantbench: no results of table 'scenarios' under")
    assert stdout.startswith("TABLE")


def test_formats_need_no_results_and_say_nothing_of_them(tmp_path: Path) -> None:
    code, stdout, stderr = _run("tables", "formats", "--results", str(tmp_path / "nothing"))
    assert (code, stderr) == (0, "")
    assert stdout.startswith("Number formats\n")
    assert _run("tables", "formats", "--results", str(tmp_path / "nothing"), "--run", "any")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tables", "gguf", "--all"], "--all goes without a table's name; quantbench tables gguf shows every row anyway"),
        (
            ["recommend", "--model", "llama-2-7b"],
            "model 'llama-2-7b' was not measured; give the --memory that a plan is to fit, such as 24GiB",
        ),
        (["tables", "ggfu"], "unknown table 'ggfu'; did you mean 'gguf'?"),
        (["tables", "--run", "earl"], "unknown run 'earl'; did you mean 'early'?"),
        (["recommend", "--memory", "much"], "'much' is not a memory size; write for example 24GiB, 16GB or 512MiB"),
        (["recommend", "--memory", "1GB", "--max-kld", "-1"], "--max-kld -1 is not a limit; give a number of at least 0"),
        (["recommend", "--memory", "1GB", "--min-tps", "nan"], "--min-tps nan is not a limit; give a number of at least 0"),
    ],
)
def test_what_cannot_be_asked(results: Path, arguments: list[str], said: str) -> None:
    assert _run(*arguments, "--results", str(results)) == (2, "", f"quantbench: {said}\n")


def test_a_file_that_cannot_be_read_is_a_message_and_the_rest_is_shown(results: Path) -> None:
    broken = results / "scenarios" / "date=2026-01-01" / "broken-0.parquet"
    broken.write_bytes(b"PAR1 and no more")
    code, stdout, stderr = _run("tables", "--results", str(results))
    assert code == 0
    assert "run late" in stdout
    assert stderr.startswith(f"quantbench: {broken} cannot be read and is left out (")
    assert stderr.count("\n") == 1


@pytest.fixture
def one_run(tmp_path: Path) -> Path:
    root = tmp_path / "results"
    _write(root, "only", 1)
    return root


@pytest.mark.parametrize(
    ("limits", "pick"),
    [
        (["--memory", "700B"], "gguf/q4_k_m"),
        (["--memory", "700B", "--max-kld", "1"], "gguf/q2_k"),
        (["--memory", "4KB", "--max-kld", "0.01"], "gguf/q8_0"),
        (["--memory", "4KB", "--max-kld", "0"], "torch/fp32"),
        ([], "gguf/q4_k_m"),
    ],
)
def test_recommend_keeps_the_limits(one_run: Path, limits: list[str], pick: str) -> None:
    code, text, stderr = _run("recommend", *limits, "--results", str(one_run))
    assert (code, stderr) == (0, "")
    assert f"ship {pick}: " in text.lower()
    code, body, _ = _run("recommend", *limits, "--results", str(one_run), "--format", "json")
    assert code == 0
    choice = json.loads(body)[0]
    assert choice["sentence"] == text.splitlines()[0]
    assert choice["pick"]["name"] == pick


@pytest.mark.parametrize("limits", [["--memory", "300B"], ["--memory", "1GB", "--min-tps", "1000"]])
def test_recommend_says_when_nothing_keeps_the_limits(one_run: Path, limits: list[str]) -> None:
    code, text, _ = _run("recommend", *limits, "--results", str(one_run))
    assert code == 4
    assert text.startswith("Ship none")
    code, body, _ = _run("recommend", *limits, "--results", str(one_run), "--format", "json")
    assert code == 4
    assert json.loads(body)[0]["pick"] is None


def test_recommend_with_two_models_is_fine_when_one_has_a_pick(one_run: Path) -> None:
    _write(one_run, "both", 2)
    _write(one_run, "both", 3, model="other/model", started_at=datetime(2026, 1, 2, tzinfo=UTC), status="oom")
    code, text, _ = _run("recommend", "--memory", "700B", "--results", str(one_run))
    assert code == 0
    assert text.startswith("some/model, prompts ten\nUnder ")
    assert "\nother/model, prompts ten\nShip none" in text


def test_why_gives_each_of_the_others_a_line(one_run: Path) -> None:
    code, text, _ = _run("recommend", "--why", "--results", str(one_run))
    assert code == 0
    lines = text.splitlines()
    assert lines[0].startswith("Ship gguf/q4_k_m: ")
    assert lines[-1] == RULE
    reasons = {line.split()[0]: line for line in lines if "/" in line.split(" ")[0]}
    assert set(reasons) == {name for name, *_ in ROWS} - {"gguf/q4_k_m"}
    assert reasons["gguf/q2_k"].endswith("KLD above 0.056")
    assert max(map(len, lines)) <= 100
