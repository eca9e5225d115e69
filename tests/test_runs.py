"""Which files are opened to answer a question about one run or a few: theirs, and no others that hold results."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from typer.testing import CliRunner

from quantbench.cli.app import app
from quantbench.core.errors import StoreError, UsageError
from quantbench.core.machine import Machine
from quantbench.core.record import Output, Record, Sample, Status
from quantbench.core.scenario import Scenario, Variant
from quantbench.judge.compare.sides import is_whole, load_side
from quantbench.results.resume import LAST, resume
from quantbench.results.runs import Runs
from quantbench.results.store import Run, Store, load

if TYPE_CHECKING:
    from collections.abc import Collection

MACHINE = Machine(cpu="Example CPU", cpus=2, memory_bytes=8 * 2**30, isa="avx2", system="Linux x86_64")
ORDER = ["first", "second", "third", "fourth"]
"""The runs of a store in the order in which they began; the clock was set back by ten days before the third."""

DAYS = {"first": 11, "second": 12, "third": 2, "fourth": 3}
FIGURES = {"fp32": (4000, 10.0, 0.0), "bf16": (2000, 15.0, 1e-4)}


def _run_of(run_id: str) -> Run:
    return Run(
        machine=MACHINE, versions={}, command="quantbench run", commit="", profile="quick", engine="inline", run_id=run_id,
        started_at=datetime(2026, 1, DAYS[run_id], tzinfo=UTC),
    )  # fmt: skip


def _measure(root: Path, run_id: str, model: str = "some/model") -> None:
    """Store a run of two variants, of which the second has samples and both have answers."""
    _store(root, _run_of(run_id), model)


def _store(root: Path, run: Run, model: str = "some/model") -> None:
    store = Store(str(root), run)
    store.begin(planned=len(FIGURES))
    for precision, (size, tps, kld) in FIGURES.items():
        answer = Output(
            index=0, prompt="p", prompt_tokens=(1,), reference_tokens=(2,), variant_tokens=(2,), reference_text="a",
            variant_text="a", exact_match=True, first_divergence=None, token_match=1.0, chrf=100.0,
        )  # fmt: skip
        scenario = Scenario(model=model, prompts="ten", variant=Variant(method="torch", precision=precision))
        values = {"weight_bytes": size, "weight_bytes_running": size, "decode_tps": tps, "kld_mean": kld}
        record = Record(
            scenario=scenario, scenario_key="k" * 64, status=Status.OK, values=values, outputs=(answer,),
            facts={"anchor": "torch/fp32"}, samples=(Sample("gap", 0, 0, 1 / tps),) if precision == "bf16" else (),
        )  # fmt: skip
        store.append(record, instrument_check=False)
    store.finish(planned=len(FIGURES), finished=len(FIGURES), ok=len(FIGURES), interrupted=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store of four runs."""
    for run_id in ORDER:
        _measure(tmp_path / "results", run_id, "an/other" if run_id == "fourth" else "some/model")
    return tmp_path / "results"


class Opened:
    """The local file system, which remembers the files that were opened for reading."""

    def __init__(self) -> None:
        self.real = fs.LocalFileSystem()
        self.paths: list[Path] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def open_input_file(self, path: str) -> Any:
        self.paths.append(Path(path))
        return self.real.open_input_file(path)

    def runs(self, *tables: str) -> set[str]:
        """The runs of which files of these tables were opened."""
        return {path.name.rpartition("-")[0] for path in self.paths if path.parts[-3] in tables}


@pytest.fixture
def opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """What is opened from here on, the store being written."""
    watched = Opened()
    monkeypatch.setattr(fs, "LocalFileSystem", lambda: watched)
    return watched


def _files(root: Path, table: str, run_id: str = "*") -> list[Path]:
    return sorted((root / table).rglob(f"{run_id}-*.parquet"))


def _ids(frame: Any) -> list[str]:
    return list(dict.fromkeys(frame["run_id"]))


# --- from Python


def test_a_run_is_known_by_names_and_its_own_row(root: Path, opened: Opened) -> None:
    runs = Runs(str(root))
    assert opened.paths == []
    assert "second" in runs
    assert opened.paths == []
    assert runs.ids == ORDER
    assert "fifth" not in runs
    assert opened.runs("scenarios", "samples", "outputs") == set()
    assert opened.runs("runs") == set(ORDER)


@pytest.mark.parametrize("table", ["scenarios", "samples", "outputs", "runs"])
@pytest.mark.parametrize("runs", [["second"], ["first", "fourth"]])
def test_of_every_table_only_files_of_the_named_runs_are_opened(
    table: str, runs: list[str], root: Path, opened: Opened
) -> None:
    assert sorted(_ids(load(str(root), table, run=runs))) == sorted(runs)
    assert opened.runs("scenarios", "samples", "outputs", "runs") == set(runs)


def test_a_run_without_rows_in_a_table_makes_nobody_read_it_all(root: Path, opened: Opened) -> None:
    for path in _files(root, "samples", "second"):
        path.unlink()
    with pytest.raises(StoreError, match="run second kept no rows in table 'samples' under"):
        load(str(root), "samples", run="second")
    assert opened.runs("samples") == set()


def test_the_latest_runs_are_those_that_began_last_whatever_the_clock_says(root: Path, opened: Opened) -> None:
    assert _ids(Runs(str(root)).latest()) == ["fourth"]
    assert opened.runs("scenarios") == {"fourth"}
    assert _ids(Runs(str(root)).latest(2, exclude=["fourth"])) == ["second", "third"]
    assert opened.runs("scenarios") == {"second", "third", "fourth"}


def test_what_is_read_of_runs_one_by_one_is_what_is_read_of_all_at_once(root: Path) -> None:
    whole, runs = load(str(root)), Runs(str(root))
    for alone in (runs.of(ORDER), runs.latest(9)):
        assert alone.dtypes.equals(whole.dtypes)
        by = ["run_id", "scenario_id"]
        assert alone.sort_values(by, ignore_index=True).equals(whole.sort_values(by, ignore_index=True))
    columns = ("run_id", "model", "decode_tps")
    for run_id, frame in zip(reversed(ORDER), runs.latest_first(columns), strict=True):
        assert frame.equals(whole.loc[whole["run_id"] == run_id, list(columns)].reset_index(drop=True))


def test_last_is_found_without_reading_what_was_measured(root: Path, opened: Opened) -> None:
    with resume(str(root), LAST, _run_of("first")) as earlier:
        assert earlier.run.run_id == "fourth"
    assert opened.runs("scenarios", "samples", "outputs") == set()


@pytest.mark.parametrize(
    ("text", "options", "read"),
    [
        ("", {}, {"fourth"}),
        ("", {"window": 2, "exclude": ["fourth"]}, {"second", "third"}),
        ("first,third", {}, {"first", "third"}),
    ],
)
def test_of_a_side_only_its_runs_are_opened(
    text: str, options: dict[str, Any], read: set[str], root: Path, opened: Opened
) -> None:
    side = load_side(text or str(root), str(root), **options)
    assert set(_ids(side)) == opened.runs("scenarios") == read
    opened.paths.clear()
    assert is_whole(side, text or str(root), str(root))
    assert opened.runs("scenarios", "runs") == read


# --- from the command line


@pytest.mark.parametrize(
    ("command", "code", "read"),
    [
        (["tables", "measured"], 0, {"fourth"}),
        (["tables", "measured", "--run", "second"], 0, {"second"}),
        (["tables", "measured", "--run", "secnd"], 2, set()),
        (["recommend", "--memory", "1GB"], 0, {"fourth"}),
        (["recommend", "--memory", "1GB", "--model", "some/model"], 0, {"fourth", "third"}),
        (["compare", "first", "second"], 0, {"first", "second"}),
        (["compare", "first", "secnd"], 2, set()),
        (["contrast", "torch-fp32", "torch-bf16"], 0, {"fourth"}),
        (["contrast", "torch-fp32", "torch-bf16", "--model", "some/model"], 0, {"fourth", "third"}),
        (["contrast", "torch-fp32", "torch-bf16", "--run", "first"], 0, {"first"}),
        (["export", "--to", "csv"], 0, {"fourth"}),
        (["export", "--to", "csv", "--run", "first", "--table", "samples"], 0, {"first"}),
    ],
)
def test_a_command_opens_files_of_the_runs_asked_for(
    command: list[str], code: int, read: set[str], root: Path, opened: Opened
) -> None:
    ended = CliRunner().invoke(app, [*command, "--results", str(root)])
    assert ended.exit_code == code, ended.output
    assert opened.runs("scenarios", "samples", "outputs") == read


def test_a_comparison_of_a_folder_with_itself_opens_two_runs(root: Path, opened: Opened) -> None:
    CliRunner().invoke(app, ["compare", str(root), str(root)])
    assert opened.runs("scenarios") == {"fourth", "third"}


@pytest.mark.parametrize(("limit", "most"), [("HISTORY", 2), ("FILES", 5)])
def test_a_report_says_how_many_runs_it_did_not_read(
    limit: str, most: int, root: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run has two files of rows."""
    monkeypatch.setattr(f"quantbench.cli.report.{limit}", most)
    picture = root.parent / "report.svg"
    arguments = ["report", "-o", str(picture), "--results", str(root)]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.startswith(f"{picture}: run fourth, 2 rows, ")
    assert ended.stdout.endswith("; 2 earlier runs not read\n")
    assert opened.runs("scenarios") == {"fourth", "third"}
    assert opened.runs("samples", "outputs") == {"fourth"}
    ended = CliRunner().invoke(app, [*arguments, "--run", "first"])
    assert ended.stdout.startswith(f"{picture}: run first, 2 rows, ")
    assert ended.stdout.endswith("; 2 earlier runs not read\n")  # two in all: its own, and the latest
    assert opened.runs("samples", "outputs") == {"fourth", "first"}


# --- what is broken, merged or foreign


def test_of_damaged_files_only_those_of_the_runs_read_are_told(root: Path) -> None:
    for run_id in ("second", "third"):
        _files(root, "scenarios", run_id)[0].write_bytes(b"PAR1 and no more")
    ended = CliRunner().invoke(app, ["tables", "measured", "--results", str(root)])
    assert (ended.exit_code, ended.stderr) == (0, "")
    ended = CliRunner().invoke(app, ["tables", "measured", "--results", str(root), "--run", "second"])
    assert (ended.exit_code, ended.stderr.count("cannot be read and is left out")) == (0, 1)
    assert _files(root, "scenarios", "second")[0].name in ended.stderr


def test_where_nothing_of_the_latest_run_can_be_read_it_is_said_and_the_one_before_is_taken(root: Path) -> None:
    for path in _files(root, "scenarios", "fourth"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"fourth-0000\d\.parquet cannot be read and is left out") as caught:
        assert _ids(Runs(str(root)).latest()) == ["third"]
    assert len(caught) == len(FIGURES)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(StoreError, match="no row of run fourth"):
        Runs(str(root)).of(["fourth"])


def _without_own_row(root: Path, how: str, runs: Collection[str]) -> None:
    for run_id in runs:
        (path,) = _files(root, "runs", run_id)
        path.write_bytes(b"broken") if how == "broken" else path.unlink()


@pytest.mark.parametrize("how", ["broken", "gone"])
@pytest.mark.parametrize("runs", [["fourth"], ["first", "third"], ORDER], ids=len)
def test_a_run_without_its_own_row_is_placed_by_one_of_its_files(
    how: str, runs: list[str], root: Path, opened: Opened
) -> None:
    _without_own_row(root, how, runs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Runs(str(root)).ids == ORDER
    firsts = [f"{run_id}-00000.parquet" for run_id in sorted(runs)]
    assert sorted(path.name for path in opened.paths if "scenarios" in path.parts) == firsts


def test_if_that_file_is_broken_the_next_is_taken_and_the_broken_one_told(root: Path) -> None:
    _without_own_row(root, "gone", ["fourth"])
    path = _files(root, "scenarios", "fourth")[0]
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match=path.name) as caught:
        assert Runs(str(root)).ids == ORDER
    assert len(caught) == 1


@pytest.mark.parametrize("name", ["all.parquet", "older-00000.parquet"])
@pytest.mark.parametrize("merged", [["first", "third"], ORDER], ids=len)
def test_runs_in_a_file_of_another_name_are_found(name: str, merged: list[str], root: Path, opened: Opened) -> None:
    """As where somebody joined the files of some runs into one."""
    paths = [path for run_id in merged for path in _files(root, "scenarios", run_id)]
    joined = pa.concat_tables([pq.ParquetFile(pa.BufferReader(path.read_bytes())).read() for path in paths])
    for path in paths:
        path.unlink()
    with (root / "scenarios" / name).open("wb") as stream:
        pq.write_table(joined, stream)
    runs = Runs(str(root))
    assert runs.ids == ORDER
    assert [_ids(frame) for frame in runs.latest_first()] == [[run_id] for run_id in reversed(ORDER)]
    assert _ids(runs.of(["first"])) == _ids(load(str(root), run="first")) == ["first"]
    assert sum(path.name == name for path in opened.paths) == 4  # for the order, for the three questions: never once a run


def test_a_copy_under_another_name_is_no_run(root: Path) -> None:
    path = _files(root, "scenarios", "second")[0]
    shutil.copy(path, path.with_name("backup-00000.parquet"))
    assert Runs(str(root)).ids == ORDER
    assert len(Runs(str(root)).of(["second"])) == len(FIGURES)


def test_files_of_somebody_else_are_told(root: Path) -> None:
    """Nobody knows what they hold without opening them."""
    (root / "scenarios" / "notes.parquet").write_bytes(b"no parquet")
    with pytest.warns(UserWarning, match=r"notes\.parquet cannot be read and is left out"):
        assert Runs(str(root)).ids == ORDER


def test_runs_of_older_versions_have_an_order_too(tmp_path: Path) -> None:
    """They were not numbered, and began before those that are."""
    for version in sorted((Path(__file__).parent / "data" / "schema").glob("version-*")):
        shutil.copytree(version, tmp_path / "results", dirs_exist_ok=True)
    _measure(tmp_path / "results", "third")
    runs = Runs(str(tmp_path / "results"))
    assert runs.ids == ["old-run", "third"]
    assert _ids(runs.latest()) == ["third"]
    assert runs.latest(exclude=["third"])["weight_bytes"].tolist()[0] == 2**53 + 1


def test_a_uri_is_a_place_too(root: Path) -> None:
    assert _ids(Runs(f"file://{root}").latest()) == ["fourth"]
    assert _ids(load_side(f"file://{root}", "results")) == ["fourth"]


def test_without_runs_there_is_one_sentence(root: Path) -> None:
    with pytest.raises(StoreError, match="no results of table 'scenarios' under"):
        Runs(str(root / "nothing"))
    with pytest.raises(UsageError, match=r"no run 'fifth' in .* and no such file; the first run there is 'first'"):
        load_side("first,fifth", str(root))
    for path in _files(root, "scenarios"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(StoreError, match="no results of table 'scenarios'"):
        Runs(str(root)).latest()


def test_the_rows_of_a_run_whose_id_tells_its_day_are_found_without_listing_other_days(tmp_path: Path) -> None:
    """Unless they are not all there: somebody merged a table, or named the run."""
    root = tmp_path / "results"
    for day in (11, 12):
        run = replace(_run_of("first"), run_id=f"202601{day}T000000-abcdef", started_at=datetime(2026, 1, day, tzinfo=UTC))
        _store(root, run)
    wanted = "20260112T000000-abcdef"
    (root / "samples" / "date=2026-01-11").rename(root / "samples" / "elsewhere")
    expected = load(str(root), "samples")
    expected = expected[expected["run_id"] == wanted].reset_index(drop=True)
    assert len(expected) == 1
    pd.testing.assert_frame_equal(load(str(root), "samples", run=wanted), expected)
    pd.testing.assert_frame_equal(load(str(root), "samples", run=[wanted, wanted]), expected)
    (root / "samples" / "date=2026-01-12").rename(root / "samples" / "moved")
    pd.testing.assert_frame_equal(load(str(root), "samples", run=wanted), expected)
    assert sorted(load(str(root), run=[wanted, "20260111T000000-abcdef"])["run_id"].unique()) == [
        "20260111T000000-abcdef", wanted,
    ]  # fmt: skip
