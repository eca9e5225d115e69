"""Gathered files: the same rows as before, found once, whenever a process is killed, and wherever it is read meanwhile."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from quantbench.core.errors import StoreError
from quantbench.core.machine import Machine
from quantbench.core.record import Output, Record, Sample, Status
from quantbench.core.scenario import Scenario, Variant
from quantbench.results.gather import gather, part
from quantbench.results.names import Name
from quantbench.results.parts import apart, together
from quantbench.results.resume import resume
from quantbench.results.runs import Runs
from quantbench.results.schema import TABLES
from quantbench.results.store import Run, Store, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MACHINE = Machine(cpu="Example CPU", cpus=2, memory_bytes=8 * 2**30, isa="avx2", system="Linux x86_64")
DAY = "date=2026-01-12"
PRECISIONS = ("q8_0", "q6_k", "q5_k_m", "q4_k_m")
TABLES_GATHERED = ("scenarios", "samples", "outputs")


class Killed(BaseException):
    """Ends a process where it stands: nothing is tidied."""


class Mortal(fs.LocalFileSystem):
    """A local file system under a process that is killed before its ``last`` change of files."""

    left = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("move", "delete_file"):
            return found

        def change(*arguments: Any) -> None:
            if not self.left:
                raise Killed
            self.left -= 1
            found(*arguments)

        return change


def own(run_id: str = "20260112T000000-123456") -> Run:
    return Run(
        machine=MACHINE, versions={}, command="quantbench run", commit="", profile="quick", engine="inline", run_id=run_id,
        started_at=datetime(2026, 1, 12, tzinfo=UTC),
    )  # fmt: skip


def record(precision: str) -> Record:
    """One that crashed has no answers; the others have samples and an answer."""
    scenario = Scenario(model="some/model", prompts="ten", variant=Variant(method="gguf", precision=precision))
    if precision == "q5_k_m":
        return Record(scenario=scenario, scenario_key="k" * 64, status=Status.CRASHED, reason="killed")
    answer = Output(
        index=0, prompt="p", prompt_tokens=(1,), reference_tokens=(2,), variant_tokens=(2,), reference_text="a",
        variant_text=precision, exact_match=True, first_divergence=None, token_match=1.0, chrf=100.0,
    )  # fmt: skip
    samples = tuple(Sample("gap", 0, index, len(precision) + index) for index in range(3))
    values = {"weight_bytes": len(precision), "kld_mean": 0.5}
    return Record(
        scenario=scenario, scenario_key="k" * 64, status=Status.OK, values=values, outputs=(answer,), samples=samples
    )


def measured(root: Path, run: Run) -> Store:
    store = Store(str(root), run)
    store.begin(planned=len(PRECISIONS))
    for precision in PRECISIONS:
        store.append(record(precision), instrument_check=False)
    return store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with a run that has not ended yet: a file a scenario."""
    measured(tmp_path / "results", own())
    return tmp_path / "results"


def names(root: Path, table: str) -> list[str]:
    return sorted(path.name for path in (root / table).rglob("*.parquet"))


def rows(root: Path) -> dict[str, pd.DataFrame]:
    """All that is read of each table, in one order; every way to read it agrees."""
    found = {table: load(str(root), table) for table in TABLES_GATHERED}
    stored = Runs(str(root))
    pd.testing.assert_frame_equal(ordered(stored.of(stored.ids)), ordered(found["scenarios"]))
    pd.testing.assert_frame_equal(ordered(stored.latest()), ordered(found["scenarios"]))
    return {table: ordered(frame) for table, frame in found.items()}


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    by = [name for name in ("scenario_id", "repeat", "phase", "round", "index") if name in frame]
    return frame.sort_values(by).reset_index(drop=True)


def assert_same(one: dict[str, pd.DataFrame], other: dict[str, pd.DataFrame]) -> None:
    for table in TABLES_GATHERED:
        pd.testing.assert_frame_equal(one[table], other[table])


def ended(root: Path, *, interrupted: bool = False) -> None:
    Store(str(root), own()).finish(planned=4, finished=4, ok=3, interrupted=interrupted)


def test_a_run_that_has_ended_has_one_file_a_table_with_the_same_rows(root: Path) -> None:
    before = rows(root)
    ended(root)
    assert names(root, "scenarios") == ["20260112T000000-123456-00000to00003.parquet"]
    assert names(root, "samples") == names(root, "outputs") == ["20260112T000000-123456-00000to00003.parquet"]
    assert names(root, "runs") == ["20260112T000000-123456-00000.parquet"]
    assert_same(rows(root), before)
    plain = pd.read_parquet(root / "scenarios")
    assert sorted(plain["precision"]) == sorted(PRECISIONS)


def test_an_interrupted_run_and_a_single_scenario_stay_as_they_are(root: Path, tmp_path: Path) -> None:
    ended(root, interrupted=True)
    assert len(names(root, "scenarios")) == 4
    store = Store(str(tmp_path / "one"), own())
    store.append(record("q8_0"), instrument_check=False)
    store.finish(planned=1, finished=1, ok=1, interrupted=False)
    assert names(tmp_path / "one", "scenarios") == ["20260112T000000-123456-00000.parquet"]


def test_what_was_gathered_can_be_parted_again_to_the_same_files(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "before")
    ended(root)
    part(fs.LocalFileSystem(), str(root), DAY, own().run_id)
    for table in TABLES_GATHERED:
        assert names(root, table) == names(tmp_path / "before", table)
        for path in (root / table).rglob("*.parquet"):
            other = pq.read_table(tmp_path / "before" / path.relative_to(root), partitioning=None)
            assert pq.read_table(path, partitioning=None).equals(other, check_metadata=True)


def test_a_run_is_resumed_from_gathered_files_and_gathered_again(root: Path) -> None:
    ended(root)
    before = rows(root)
    with resume(str(root), own().run_id, own()) as earlier:
        assert {key: kept.status for key, kept in earlier.rows.items()} == {
            (record(each).scenario.id, 0): record(each).status for each in PRECISIONS
        }
        earlier.clear()  # answers of what is to be measured again: none here
        store = Store(str(root), earlier.run, earlier.numbers)
        crashed = record("q5_k_m")
        again = Record(
            scenario=crashed.scenario, scenario_key="k" * 64, status=Status.OK, values={"weight_bytes": 8, "kld_mean": 0.25}
        )
        store.append(again, instrument_check=False)
        store.finish(planned=4, finished=4, ok=4, interrupted=False)
    assert names(root, "scenarios") == ["20260112T000000-123456-00000to00003.parquet"]
    after = rows(root)
    assert after["scenarios"]["status"].tolist() == ["ok"] * 4
    for table in ("samples", "outputs"):
        pd.testing.assert_frame_equal(after[table], before[table])


def chains(root: Path, tmp_path: Path, what: Callable[..., None]) -> Iterator[Path]:
    """A copy of the store for each change at which a process that does ``what`` is killed, and one for none."""
    changes = 0
    while True:
        copy = tmp_path / f"killed-{changes}"
        shutil.copytree(root, copy)
        mortal = Mortal()
        mortal.left = changes
        try:
            what(mortal, str(copy), DAY, own().run_id)
        except Killed:
            changes += 1
            yield copy
        else:
            yield copy
            return


def test_whenever_gathering_is_killed_each_row_is_there_once_and_the_next_end_tidies(root: Path, tmp_path: Path) -> None:
    before = rows(root)
    count = 0
    for copy in chains(root, tmp_path, gather):
        assert_same(rows(copy), before)
        ended(copy)
        assert_same(rows(copy), before)
        assert [len(names(copy, table)) for table in TABLES_GATHERED] == [1, 1, 1]
        count += 1
    assert count == 3 + 4 + 3 + 3 + 1  # a new file and each removal, of each table; and the one that is not killed


def test_whenever_parting_is_killed_each_row_is_there_once_and_it_can_be_resumed(root: Path, tmp_path: Path) -> None:
    before = rows(root)
    ended(root)
    for copy in chains(root, tmp_path, part):
        assert_same(rows(copy), before)
        with resume(str(copy), own().run_id, own()) as earlier:
            assert len(earlier.rows) == 4
        assert_same(rows(copy), before)


@pytest.mark.parametrize("what", [gather, part])
def test_who_has_listed_the_files_before_finds_the_rows_where_they_are_now(root: Path, what: Callable[..., None]) -> None:
    """A report that is made while a run ends."""
    before = rows(root)
    if what is part:
        ended(root)
    listed = Runs(str(root))
    what(fs.LocalFileSystem(), str(root), DAY, own().run_id)
    pd.testing.assert_frame_equal(ordered(listed.of([own().run_id])), before["scenarios"])
    few = listed.of([own().run_id], ["run_id", "precision"])
    assert sorted(few["precision"]) == sorted(PRECISIONS)


def test_other_runs_files_are_not_touched(root: Path) -> None:
    other = own("20260112T000000-123456-00001")  # the name of the one begins the name of the other
    measured(root, other)
    ended(root)
    assert len(names(root, "scenarios")) == 1 + 4
    assert sorted(load(str(root))["run_id"].unique()) == [own().run_id, other.run_id]
    assert len(load(str(root))) == 8


def test_files_of_several_versions_and_damaged_ones_stay_as_they_are(root: Path) -> None:
    path = root / "scenarios" / DAY / "20260112T000000-123456-00001.parquet"
    newer = pq.read_table(path, partitioning=None).append_column("from_the_future", pa.array([1.0]))
    pq.write_table(newer, path)
    (root / "outputs" / DAY / "20260112T000000-123456-00000.parquet").write_bytes(b"PAR1")
    ended(root)
    assert len(names(root, "scenarios")) == 4
    assert len(names(root, "outputs")) == 3
    assert len(load(str(root))) == 4


@pytest.mark.parametrize("told", [None, b"", b"[[0, 3]]", b"[[0, 4], 1]", b'[["0", 4]]', b"9" * 5000, b"[" * 10**5, b"{}"])
def test_a_gathered_file_that_somebody_changed_is_read_and_not_resumed(root: Path, told: bytes | None) -> None:
    ended(root)
    path = root / "scenarios" / DAY / "20260112T000000-123456-00000to00003.parquet"
    table = pq.read_table(path, partitioning=None)
    metadata = {**table.schema.metadata, b"quantbench.parts": told} if told is not None else {}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    assert len(load(str(root))) == 4
    with pytest.raises(StoreError, match=r"the rows of run 20260112T000000-123456 cannot be parted again \(it does not say"):
        resume(str(root), own().run_id, own())
    assert path.exists()


@given(
    run=st.from_regex(r"[^./\n-][^/\n]{0,20}", fullmatch=True), first=st.integers(0, 10**7),
    count=st.none() | st.integers(0, 10**5),
)  # fmt: skip
def test_a_name_says_what_it_was_made_of(run: str, first: int, count: int | None) -> None:
    name = Name(run, first, None if count is None else first + count)
    assert Name.of(f"folder/{name}") == name


@given(st.lists(st.tuples(st.integers(0, 99), st.lists(st.integers(), max_size=3)), min_size=1, unique_by=lambda each: each[0]))
def test_what_is_put_together_comes_apart_again(parts: list[tuple[int, list[int]]]) -> None:
    kept = {
        number: pa.table({"value": pa.array([each % 100 for each in values], pa.int64())}).replace_schema_metadata({"a": "b"})
        for number, values in parts
    }
    found = apart(together(kept))
    assert found.keys() == kept.keys()
    assert all(found[number].equals(kept[number], check_metadata=True) for number in kept)
    assert set(TABLES) > {"scenarios"}
    assert json.loads(together(kept).schema.metadata[b"quantbench.parts"]) == [[number, len(kept[number])] for number in kept]
