"""Parquet: what is written, what plain pandas sees, and what happens when the place is bad or the disk full."""

from __future__ import annotations

import errno
import json
import os
import warnings
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quantbench import tables
from quantbench.core.errors import StoreError
from quantbench.core.machine import Machine
from quantbench.core.record import SCHEMA_VERSION, Missing, Output, Record, Sample, Status
from quantbench.core.scenario import Scenario, Variant
from quantbench.judge.compare.sides import load_side
from quantbench.metrics import all_columns
from quantbench.results import store
from quantbench.results.schema import schema
from quantbench.results.store import Run, Store, in_order, load

if TYPE_CHECKING:
    from pathlib import Path

TABLES = ("scenarios", "samples", "outputs", "runs")

MACHINE = Machine(cpu="Xeon", cpus=2, memory_bytes=2**34, isa="avx2 fma", system="Linux x86_64")
SCENARIO = Scenario(model="canary", variant=Variant(method="gguf", precision="q4_k_m"), prompts="ten")
OF_OK_ROWS = {"reason", "traceback", "artifact", "artifact_maker", "artifact_sha256", "artifact_audit", "artifact_note"}
"""Null in a row that is ok by their very meaning, or as it is of no artifact."""


@pytest.fixture
def run() -> Run:
    """One session."""
    return Run(
        machine=MACHINE,
        versions={"torch": "2.13.0"},
        command="pytest bench/",
        commit="0123abcd",
        profile="default",
        engine="process",
        run_number=1,
        started_at=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
    )


@pytest.fixture
def ok() -> Record:
    """A measured scenario: every metric's column has a figure, but for two that have a reason."""
    values: dict[str, Any] = {
        column.name: {"int": 7, "float": 0.5, "string": "x", "bool": True}[column.kind] for column in all_columns()
    }
    values |= {
        "kld_p99": Missing("a p99 takes 1000 scored tokens"),
        "peak_device_allocated_bytes": Missing("the model ran on the CPU"),
    }
    return Record(
        scenario=SCENARIO,
        scenario_key="k" * 64,
        status=Status.OK,
        predicted_weight_bytes=7,
        values=values,
        facts={
            "kernel": "ggml-cpu", "kv_dtype": "f16", "checkpoint_dtype": "bf16", "threads": "2", "context": "256",
            "anchor": "gguf/f16", "device": "cpu", "waiting": "spin 30000", "isa_of_build": "AVX512",
        },
        samples=(Sample("prefill", 0, 0, 0.25), Sample("gap", 0, 1, 0.125)),
        outputs=(
            Output(
                index=0, prompt="p", prompt_tokens=(1, 2), reference_tokens=(3, 4), variant_tokens=(3, 5),
                reference_text="a", variant_text="b\n\x00\U0001f600", exact_match=False, first_divergence=1,
                token_match=0.5, chrf=50.0,
            ),
            Output(
                index=1, prompt="q", prompt_tokens=(1,), reference_tokens=(), variant_tokens=(), reference_text="",
                variant_text="", exact_match=True, first_divergence=None, token_match=1.0, chrf=100.0,
            ),
        ),
    )  # fmt: skip


@pytest.fixture
def crashed() -> Record:
    """A scenario whose worker died."""
    scenario = replace(SCENARIO, variant=Variant(method="torch", precision="fp16"))
    return Record(
        scenario=scenario, scenario_key="c" * 64, status=Status.CRASHED, reason="killed by signal 11", traceback="..."
    )


@pytest.fixture
def results(tmp_path: Path) -> str:
    """Where results go."""
    return str(tmp_path / "results")


def _missing(frame: Any, row: int = 0) -> set[str]:
    return {name for name in frame.columns if frame[name].isna().iloc[row]}


# --- writing and reading


def _write(results: str, run: Run, *records: Record) -> None:
    opened = Store(results, run)
    for record in records:
        opened.append(record, instrument_check=True)
    opened.finish(planned=len(records), finished=len(records), ok=1, interrupted=False)


def _files(results: str, table: str) -> list[Path]:
    from pathlib import Path

    return sorted(Path(results, table).rglob("*.parquet"))


def test_files_lie_by_table_and_day_one_for_each_flush(results: str, run: Run, ok: Record, crashed: Record) -> None:
    _write(results, run, ok, crashed)
    day = "date=2026-03-04"
    assert [path.parent.name for path in _files(results, "scenarios")] == [day, day]
    assert len({path.name for path in _files(results, "scenarios")}) == 2
    assert all(path.name.startswith(f"{run.run_id}-") for path in _files(results, "scenarios"))
    assert [len(_files(results, table)) for table in ("samples", "outputs", "runs")] == [1, 1, 1]


def test_nothing_else_is_left_behind(results: str, run: Run, ok: Record) -> None:
    from pathlib import Path

    _write(results, run, ok)
    assert [path for path in Path(results).rglob("*") if path.is_file() and path.suffix != ".parquet"] == []


def test_a_row_of_scenarios_holds_what_was_asked_found_and_measured(results: str, run: Run, ok: Record) -> None:
    _write(results, run, ok)
    (row,) = load(results).to_dict("records")
    expected = {
        "run_id": run.run_id, "started_at": run.started_at, "scenario_id": "canary/gguf-q4_k_m/ten", "scenario_key": "k" * 64,
        "model": "canary", "method": "gguf", "precision": "q4_k_m", "prompts": "ten", "repeat": 0, "status": "ok",
        "control": False, "reference": "torch/fp32", "is_reference": False, "bits": 4.0, "device": "cpu", "device_found": "cpu",
        "threads": 2, "waiting": "spin 30000",
        "context": 256, "output_tokens": 32, "answer_tokens": 64, "continuation_tokens": 64, "answered_prompts": 10,
        "seed": 0, "anchor": "gguf/f16",
        "kernel": "ggml-cpu", "kv_dtype": "f16", "checkpoint_dtype": "bf16", "instrument_check": True,
        "machine": MACHINE.fingerprint, "cpu": "Xeon", "gpus": "", "isa": "avx2 fma", "schema_version": SCHEMA_VERSION,
        "kld_mean": 0.5, "weight_bytes": 7,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert json.loads(row["facts"]) == {"isa_of_build": "AVX512"}
    assert json.loads(row["versions"]) == {"torch": "2.13.0"}


def test_every_null_of_an_ok_row_has_its_reason(results: str, run: Run, ok: Record) -> None:
    _write(results, run, ok)
    frame = load(results)
    reasons = json.loads(frame["null_reasons"].iloc[0])
    assert _missing(frame) - OF_OK_ROWS == set(reasons) == {"kld_p99", "peak_device_allocated_bytes"}
    assert reasons["kld_p99"] == "a p99 takes 1000 scored tokens"


def test_a_fact_that_this_runtime_has_not_gets_a_reason_too(results: str, run: Run, ok: Record) -> None:
    """For a bare GGUF file the worker finds no checkpoint dtype; the row is ok all the same."""
    _write(results, run, replace(ok, facts={**ok.facts, "checkpoint_dtype": ""}))
    frame = load(results)
    assert _missing(frame) - OF_OK_ROWS <= set(json.loads(frame["null_reasons"].iloc[0]))


@pytest.mark.parametrize(
    ("elsewhere", "nulls", "words"),
    [("", {"device_found"}, "does not say where"), ("it ran there", {"device", "device_found"}, "it ran there")],
    ids=["silent method", "server"],
)
def test_a_device_that_nobody_found_has_a_reason(elsewhere: str, nulls: set[str], words: str, results: str, ok: Record) -> None:
    run = Run(machine=MACHINE, versions={}, command="", commit="", profile="quick", engine="inline")
    _write(results, run, replace(ok, facts={**ok.facts, "device": "", "elsewhere": elsewhere}))
    frame = load(results)
    assert {"device", "device_found"} & _missing(frame) == nulls
    assert words in json.loads(frame["null_reasons"].iloc[0])["device_found"]


def test_a_failed_scenario_has_a_row_too_with_its_reason(results: str, run: Run, ok: Record, crashed: Record) -> None:
    _write(results, run, ok, crashed)
    frame = load(results)
    assert list(frame["status"]) == ["ok", "crashed"]
    row = frame.iloc[1]
    assert (row["reason"], row["traceback"], row["method"], row["bits"]) == ("killed by signal 11", "...", "torch", 16.0)
    assert {column.name for column in all_columns()} <= _missing(frame, 1)


def test_samples_and_outputs_hang_on_their_scenario(results: str, run: Run, ok: Record) -> None:
    _write(results, run, ok)
    samples, outputs = load(results, "samples"), load(results, "outputs")
    found = samples[["phase", "round", "index", "value_s"]].to_numpy().tolist()
    assert found == [["prefill", 0, 0, 0.25], ["gap", 0, 1, 0.125]]
    assert [list(ids) for ids in outputs["variant_tokens"]] == [[3, 5], []]
    assert outputs["first_divergence"].isna().tolist() == [False, True]
    assert outputs["exact_match"].tolist() == [False, True]
    for frame in (samples, outputs):
        assert set(frame["scenario_key"]) == {"k" * 64}
        assert set(frame["run_id"]) == {run.run_id}


def test_outputs_hold_lists_of_figures_and_nulls(results: str, run: Run, ok: Record) -> None:
    import pyarrow as pa

    scored = replace(ok.outputs[0], scored_tokens=3, kld=(0.25, 1e-9, 0.1), kld_mean=0.125, top1_agreement=1.0, nll_mean=2.5)
    _write(results, run, replace(ok, outputs=(scored, ok.outputs[1])))
    found = load(results, "outputs")
    assert schema("outputs").field("kld").type == pa.list_(pa.float32())
    assert found["kld"][0].tolist() == pytest.approx([0.25, 1e-9, 0.1])
    assert (found["kld"][1], found["kld_mean"][0], found["nll_mean"][0]) == (None, 0.125, 2.5)
    assert found["scored_tokens"].tolist()[0] == 3
    assert {"scored_tokens", "kld", "kld_mean", "top1_agreement", "nll_mean"} <= _missing(found, 1)


def test_the_runs_own_row(results: str, run: Run, ok: Record) -> None:
    opened = Store(results, run)
    opened.append(ok, instrument_check=False)
    opened.finish(planned=15, finished=1, ok=1, interrupted=True)
    (row,) = load(results, "runs").to_dict("records")
    expected = {
        "run_id": run.run_id, "command": "pytest bench/", "commit": "0123abcd", "planned": 15, "finished": 1, "ok": 1,
        "interrupted": True, "profile": "default", "engine": "process", "machine": MACHINE.fingerprint,
        "schema_version": SCHEMA_VERSION,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert json.loads(row["machine_facts"])["memory_bytes"] == 2**34
    assert row["started_at"] == run.started_at <= row["finished_at"]


def test_loaded_columns_keep_their_kind_with_nulls(results: str, run: Run, ok: Record, crashed: Record) -> None:
    _write(results, run, ok, crashed)
    kinds = {name: str(dtype) for name, dtype in load(results).dtypes.items()}
    assert (kinds["weight_bytes"], kinds["control"], kinds["kld_mean"]) == ("Int64", "boolean", "float64")
    assert kinds["started_at"] == "datetime64[us, UTC]"
    assert kinds["status"].startswith("str")


def test_bytes_above_two_to_the_53_are_exact(results: str, run: Run, ok: Record) -> None:
    """An integer column with a null is no float column."""
    exact = 2**53 + 1
    _write(results, run, replace(ok, values={**ok.values, "weight_bytes": exact}))
    assert load(results)["weight_bytes"].iloc[0] == exact


@pytest.mark.parametrize("table", TABLES)
def test_plain_pandas_reads_the_folder(table: str, results: str, run: Run, ok: Record, crashed: Record) -> None:
    import pandas as pd

    _write(results, run, crashed, ok)
    frame = pd.read_parquet(f"{results}/{table}")
    assert set(frame.columns) == {*schema(table).names, "date"}
    assert len(frame) == len(load(results, table))
    assert set(frame["date"].astype(str)) == {"2026-03-04"}
    if table == "scenarios":
        assert frame["status"].tolist() == ["crashed", "ok"]
        assert frame["weight_bytes"].tolist()[1] == 7


def test_runs_add_up_and_do_not_touch_each_others_files(results: str, run: Run, ok: Record) -> None:
    _write(results, run, ok)
    before = {path: path.read_bytes() for path in _files(results, "scenarios")}
    other = Run(machine=MACHINE, versions={}, command="", commit="", profile="", engine="")
    assert other.run_id != run.run_id
    _write(results, other, ok)
    assert set(load(results)["run_id"]) == {run.run_id, other.run_id}
    assert {path: path.read_bytes() for path in before} == before


def test_rows_come_back_in_the_order_in_which_they_were_made(results: str, run: Run, crashed: Record) -> None:
    """Also those after the tenth, here and for plain pandas."""
    import pandas as pd

    _write(results, run, *(replace(crashed, repeat=number) for number in range(13)))
    assert load(results)["repeat"].tolist() == list(range(13))
    assert pd.read_parquet(f"{results}/scenarios")["repeat"].tolist() == list(range(13))


def test_a_uri_is_a_place_too(tmp_path: Path, run: Run, ok: Record) -> None:
    _write(f"file://{tmp_path}/by-uri", run, ok)
    assert len(load(f"file://{tmp_path}/by-uri")) == len(load(str(tmp_path / "by-uri"))) == 1


def test_odd_letters_in_the_path_are_letters(tmp_path: Path, run: Run, ok: Record) -> None:
    place = str(tmp_path / "ré sults #1 %20=x")
    _write(place, run, ok)
    assert len(load(place)) == 1


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, ok: Record) -> None:
    """As for pandas.read_parquet, and for the model paths here; the shell leaves it in --results=~/results."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    _write("~/results", run, ok)
    assert (tmp_path / "home" / "results" / "scenarios").is_dir()
    assert len(load("~/results")) == 1


# --- what may be wrong


@pytest.mark.parametrize("below", ["", "/results", "/deep/results"])
def test_a_place_that_cannot_be_written_is_refused_at_once(below: str, tmp_path: Path, run: Run) -> None:
    """A regular file stands in the way, which stops even root."""
    (tmp_path / "file").write_text("in the way")
    place = f"{tmp_path}/file{below}"
    with pytest.raises(StoreError) as caught:
        Store(place, run)
    sentence = str(caught.value)
    assert sentence.startswith(f"results cannot be written to {place!r} (")
    assert sentence.endswith("with --results")
    assert "\n" not in sentence
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("place", ["nosuch://bucket/results", "file://elsewhere/results"])
def test_a_uri_that_pyarrow_does_not_know_is_refused(place: str, run: Run) -> None:
    for attempt in (lambda: Store(place, run), lambda: load(place)):
        with pytest.raises(StoreError) as caught:
            attempt()
        assert repr(place) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_results_is_said_in_one_sentence(results: str, run: Run, ok: Record) -> None:
    sentence = f"no results of table 'scenarios' under {results!r}; run the benchmark first, or set --results"
    with pytest.raises(StoreError) as caught:
        load(results)
    assert str(caught.value) == sentence
    Store(results, run)
    with pytest.raises(StoreError) as caught:
        load(results)
    assert str(caught.value) == sentence


def test_text_that_is_no_unicode_does_not_lose_the_row(results: str, run: Run, crashed: Record) -> None:
    """A path with a byte that is no UTF-8 comes into Python as a lone surrogate, and into messages."""
    _write(results, run, replace(crashed, reason="cannot read m\udcfcll"))
    assert load(results)["status"].tolist() == ["crashed"]


@dataclass
class FullDisk:
    """A file system on which no more than ``left`` further files can be opened, or written to."""

    files: Any
    left: int = 1000
    while_writing: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.files, name)

    def open_output_stream(self, path: str) -> Any:
        self.left -= 1
        if self.left >= 0:
            return self.files.open_output_stream(path)
        if not self.while_writing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        import pyarrow as pa

        return pa.PythonFile(FullFile(path), mode="w")


Filling = tuple[Store, FullDisk, str]


class FullFile:
    """A file that takes the first few bytes."""

    closed = False

    def __init__(self, path: str) -> None:
        self._stream = open(path, "wb")  # noqa: PTH123, SIM115 - closed below, as pyarrow says

    def write(self, content: bytes) -> int:
        self._stream.write(content[:4])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()
        self.closed = True


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    """Stores opened from now on write to this disk; so far it has room."""
    original = store.filesystem
    made = FullDisk(original("/")[0])
    monkeypatch.setattr(store, "filesystem", lambda root: (made, original(root)[1]))
    return made


@pytest.fixture
def filling(disk: FullDisk, results: str, run: Run) -> Filling:
    """An open store, its disk, and its place."""
    return Store(results, run), disk, results


@pytest.mark.parametrize("while_writing", [False, True])
@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_full_disk_is_one_sentence_and_earlier_rows_still_load(
    written: int, while_writing: bool, filling: Filling, ok: Record, crashed: Record
) -> None:
    """The second record fails at its samples, its outputs or its row."""
    import pandas as pd

    opened, full, results = filling
    opened.append(crashed, instrument_check=True)
    full.left, full.while_writing = written, while_writing
    with pytest.raises(StoreError) as caught:
        opened.append(ok, instrument_check=True)
    sentence = str(caught.value)
    assert "No space left on device" in sentence
    assert results in sentence
    assert "rows written before are safe" in sentence
    assert "\n" not in sentence
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(results)["status"].tolist() == ["crashed"]
        assert pd.read_parquet(f"{results}/scenarios")["status"].tolist() == ["crashed"]


def test_an_interruption_leaves_no_half_written_file(filling: Filling, ok: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    opened, _, results = filling
    monkeypatch.setattr(store, "_flush_to_disk", interrupt)
    with pytest.raises(KeyboardInterrupt):
        opened.append(ok, instrument_check=True)
    assert [path for path in Path(results).rglob("*") if path.is_file()] == []


def test_after_room_was_made_writing_goes_on(filling: Filling, ok: Record, crashed: Record) -> None:
    opened, full, results = filling
    full.left = 1
    with pytest.raises(StoreError):
        opened.append(ok, instrument_check=True)
    full.left = 1000
    opened.append(crashed, instrument_check=True)
    opened.append(ok, instrument_check=True)
    opened.finish(planned=2, finished=2, ok=1, interrupted=False)
    assert sorted(load(results)["status"]) == ["crashed", "ok"]


def test_samples_of_a_record_whose_row_was_not_written_are_not_counted_twice(filling: Filling, ok: Record) -> None:
    """The same record once more, after room was made."""
    opened, full, results = filling
    full.left = 2
    with pytest.raises(StoreError):
        opened.append(ok, instrument_check=True)
    full.left = 1000
    opened.append(ok, instrument_check=True)
    assert len(load(results, "samples")) == len(ok.samples)
    assert len(load(results, "outputs")) == len(ok.outputs)


def test_a_full_disk_at_the_start_is_refused_at_once(disk: FullDisk, results: str, run: Run) -> None:
    disk.left = 0
    with pytest.raises(StoreError, match="No space left on device"):
        Store(results, run)


def test_a_place_that_went_away_is_one_sentence(results: str, run: Run, ok: Record) -> None:
    from pathlib import Path

    opened = Store(results, run)
    Path(results).rmdir()
    Path(results).write_text("in the way")
    with pytest.raises(StoreError, match="could not be written"):
        opened.append(ok, instrument_check=True)


@pytest.mark.parametrize("damage", ["cut short", "empty", "not parquet", "footer only"])
def test_a_corrupt_file_is_reported_and_left_out(damage: str, results: str, run: Run, ok: Record, crashed: Record) -> None:
    _write(results, run, ok, crashed)
    broken = _files(results, "scenarios")[0]
    whole = broken.read_bytes()
    kept = {"cut short": whole[:-20], "empty": b"", "not parquet": b"a,b\n1,2\n", "footer only": whole[-200:]}
    broken.write_bytes(kept[damage])
    with pytest.warns(UserWarning, match="cannot be read and is left out") as caught:
        frame = load(results)
    assert frame["status"].tolist() == ["crashed"]
    assert [str(broken) in str(warning.message) for warning in caught] == [True]


def test_a_file_with_a_damaged_page_is_reported_and_left_out(results: str, run: Run, ok: Record, crashed: Record) -> None:
    """The footer is whole, a compressed page is not."""
    _write(results, run, ok, crashed)
    broken = _files(results, "scenarios")[0]
    whole = bytearray(broken.read_bytes())
    whole[40:400] = b"\xff" * 360
    broken.write_bytes(whole)
    with pytest.warns(UserWarning, match="cannot be read and is left out"):
        assert load(results)["status"].tolist() == ["crashed"]


def test_a_file_whose_column_is_of_another_kind_is_reported_and_left_out(results: str, run: Run, ok: Record) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _write(results, run, ok)
    foreign = _files(results, "scenarios")[0].with_name("foreign.parquet")
    pq.write_table(pa.table({"status": ["ok"], "weight_bytes": ["eleven"]}), foreign)
    with pytest.warns(UserWarning, match="foreign"):
        assert len(load(results)) == 1


def test_only_corrupt_files_are_no_results(results: str, run: Run, ok: Record) -> None:
    _write(results, run, ok)
    _files(results, "scenarios")[0].write_bytes(b"")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(StoreError, match="no results of table 'scenarios'"):
        load(results)


def test_a_half_written_file_is_not_read(results: str, run: Run, ok: Record) -> None:
    """What a process killed in the middle of writing leaves."""
    import pandas as pd

    _write(results, run, ok)
    path = _files(results, "scenarios")[0]
    path.with_name(f".{path.name}.partial").write_bytes(path.read_bytes()[:100])
    assert len(load(results)) == len(pd.read_parquet(f"{results}/scenarios")) == 1


@pytest.mark.parametrize("order", ["older first", "older last"])
def test_an_older_file_that_lacks_a_column_gets_nulls_and_the_newer_keeps_its_figures(
    order: str, results: str, run: Run, ok: Record
) -> None:
    import pyarrow.parquet as pq

    _write(results, run, ok)
    path = _files(results, "scenarios")[0]
    older = pq.read_table(path, partitioning=None).drop_columns(["chrf", "weight_bytes", "status"])
    pq.write_table(older, path.with_name("a.parquet" if order == "older first" else "z.parquet"))
    frame = load(results)
    assert list(frame.columns) == schema("scenarios").names
    assert sorted(frame["chrf"].isna()) == sorted(frame["weight_bytes"].isna()) == [False, True]
    assert frame["weight_bytes"].dropna().tolist() == [7]
    assert str(frame["weight_bytes"].dtype) == "Int64"


def test_a_newer_files_further_column_does_not_hinder(results: str, run: Run, ok: Record) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _write(results, run, ok)
    path = _files(results, "scenarios")[0]
    newer = pq.read_table(path, partitioning=None)
    pq.write_table(newer.append_column("from_the_future", pa.array([1.0])), path.with_name("z.parquet"))
    assert len(load(results)) == 2


ODD = {
    "foreign": lambda: pa.table({"a": [1], "b": ["x"]}),
    "no column": lambda: pa.table({}),
    "another table's": lambda: pa.table({"run_id": ["r"], "scenario_id": ["s"], "phase": ["gap"], "value_s": [1.0]}),
    "a column twice": lambda: pa.table([pa.array(["x"])] * 5, ["run_id", "scenario_id", "started_at", "status", "status"]),
    "unlike types": lambda: pa.table(
        {"run_id": ["r"], "scenario_id": ["s"], "status": ["ok"], "started_at": [datetime(2026, 1, 1, tzinfo=UTC)],
         "weight_bytes": [[1, 2]]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*ODD, "zero bytes"])
@pytest.mark.parametrize("first", [True, False])
def test_one_odd_file_is_named_and_left_out(name: str, first: bool, results: str, run: Run, ok: Record) -> None:
    _write(results, run, ok)
    path = _files(results, "scenarios")[0].parent / ("0.parquet" if first else "zz.parquet")
    if name in ODD:
        pq.write_table(ODD[name](), path)
    else:
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match=f"{path.name} cannot be read and is left out") as caught:
        frame = load(results)
    assert len(caught) == 1
    assert list(frame["run_id"]) == [run.run_id]
    assert list(frame.columns) == schema("scenarios").names


def test_one_run_is_read_from_its_own_files_only(results: str, run: Run, ok: Record) -> None:
    _write(results, run, ok)
    other = replace(run, run_id="other-run")
    _write(results, other, ok)
    folder = _files(results, "scenarios")[0].parent
    (folder / "of-somebody-else-00000.parquet").write_bytes(b"not parquet: would be warned of if it were opened")
    assert list(load(results, run=run.run_id)["run_id"]) == [run.run_id]
    assert list(load(results, "runs", run="other-run")["run_id"]) == ["other-run"]
    with pytest.warns(UserWarning, match="left out"), pytest.raises(StoreError, match="no row of run gone"):
        load(results, run="gone")


def test_a_run_in_a_file_of_another_name_is_found(results: str, run: Run, ok: Record) -> None:
    """As where somebody joined all files into one."""
    _write(results, run, ok)
    _write(results, replace(run, run_id="other-run"), ok)
    paths = _files(results, "scenarios")
    joined = pa.concat_tables([pq.read_table(path, partitioning=None) for path in paths])
    pq.write_table(joined, paths[0].parent / "all.parquet")
    for path in paths:
        path.unlink()
    assert list(load(results, run="other-run")["run_id"]) == ["other-run"]


def _begun(results: str, run: Run, ok: Record, run_id: str, day: int) -> None:
    store = Store(results, replace(run, run_id=run_id, started_at=datetime(2026, 3, day, tzinfo=UTC)))
    store.begin(planned=1)
    store.append(ok, instrument_check=False)
    store.finish(planned=1, finished=1, ok=1, interrupted=False)


def test_runs_are_counted_whatever_the_clock_says(results: str, run: Run, ok: Record) -> None:
    """The second began on a clock that had been set back by four days."""
    _begun(results, run, ok, "a-first", 9)
    _begun(results, run, ok, "b-set-back", 5)
    for table in ("scenarios", "runs"):
        numbers = load(results, table).set_index("run_id")["run_number"]
        assert dict(numbers) == {"a-first": 1, "b-set-back": 2}
    assert in_order(load(results)) == ["a-first", "b-set-back"]
    assert list(tables.latest_run(load(results))["run_id"]) == ["b-set-back"]
    assert list(load_side(results, results)["run_id"]) == ["b-set-back"]
    assert list(load_side(results, results, exclude=["b-set-back"])["run_id"]) == ["a-first"]


def test_runs_without_a_number_come_before_those_with_one() -> None:
    days = [datetime(2026, 3, day, tzinfo=UTC) for day in (9, 5, 7, 7, 1)]
    frame = pd.DataFrame({"run_id": ["old-9", "old-5", "y", "x", "new"], "started_at": days})
    assert in_order(frame) == ["new", "old-5", "x", "y", "old-9"]
    numbered = frame.assign(run_number=pd.array([None, None, 1, 1, 2], dtype="Int64"))
    assert in_order(numbered) == ["old-5", "old-9", "x", "y", "new"]
    assert in_order(frame.iloc[:0]) == []


def test_a_row_of_no_scenario_is_left_out(results: str, run: Run, ok: Record) -> None:
    _write(results, run, ok)
    (path,) = _files(results, "scenarios")
    rows = pq.ParquetFile(path).read()
    number = rows.column_names.index("scenario_id")
    pq.write_table(rows.set_column(number, "scenario_id", pa.nulls(1, pa.string())), path)
    with pytest.warns(UserWarning, match="left out .it has a row without scenario_id"), pytest.raises(StoreError):
        load(results)
