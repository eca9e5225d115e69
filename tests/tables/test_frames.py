"""Every kind of table as a DataFrame: ``quantbench.tables.precision(rows)``."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pandas as pd
import pytest

import quantbench
from quantbench import tables
from quantbench.results.schema import DTYPES, table_columns
from quantbench.tables.frames import as_frame
from quantbench.tables.table import Cell, Heading, Table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from quantbench.core.record import Missing, Record
    from quantbench.tables.table import Scalar

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]

KINDS = [kind.name for kind in tables.KINDS]


def _table(*rows: tuple[Scalar, ...], headings: tuple[Heading, ...], title: str = "A table") -> Table:
    cells = tuple(tuple(map(Cell, row)) for row in rows)
    return Table(name="made", title=title, facts={}, caption=f"Of {title}", headings=headings, rows=cells, notes=("a note",))


def test_kinds_are_found_by_their_names_and_pandas_comes_with_the_first_call() -> None:
    said = (
        "import sys, quantbench; kind = quantbench.tables.precision; print('pandas' in sys.modules);"
        "frame = quantbench.tables.methods(); print(type(frame).__module__.split('.')[0])"
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "pandas"]


def test_no_module_hides_a_kind() -> None:
    """An import sets a package's attribute, so that a module of a kind's name would take its place."""
    assert {"precision", "gguf", "methods"} <= set(KINDS)
    assert {info.name for info in pkgutil.iter_modules(tables.__path__)} & set(KINDS) == set()
    for name in KINDS:
        assert getattr(quantbench.tables, name) is tables.KINDS[name]
    assert set(KINDS) <= set(dir(tables))


@pytest.mark.parametrize("name", ["precison", "_nothing", "frame"])
def test_what_is_no_kind_is_no_attribute(name: str) -> None:
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(tables, name)


@pytest.mark.usefixtures("artifacts")  # what a type library says is read once a machine
@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_has_every_value_of_the_tables(kind: str, write: Write, full: list[Record]) -> None:
    rows = write(full)
    made = tables.build(kind, rows)
    frame = getattr(tables, kind)(rows)

    assert isinstance(frame, pd.DataFrame)
    expected = [
        {heading.key: cell.value for heading, cell in zip(table.headings, row, strict=True)}
        for table in made
        for row in table.rows
    ]
    assert len(frame) == len(expected)
    found = frame.astype(object).where(frame.notna(), None).to_dict("records")
    for one, other in zip(found, expected, strict=True):
        assert {name: one[name] for name in other} == other
        assert {name for name, value in one.items() if value is not None} - set(other) <= {
            "run_id", "started_at", "model", "prompts", "reference", "instrument_check", "machine", "hardware", "title",
        }  # fmt: skip


@pytest.mark.parametrize("kind", ["precision", "gguf"])
def test_dtypes_are_those_of_the_schema(kind: str, write: Write, full: list[Record]) -> None:
    rows = write(full)
    frame = getattr(tables, kind)(rows)

    schema = {column.name: DTYPES[column.kind] for column in table_columns("scenarios")}
    shared = set(frame.columns) & set(schema)
    assert len(shared) > 5
    assert {name: str(frame[name].dtype) for name in shared} == {name: schema[name] for name in shared}
    assert {name: str(frame[name].dtype) for name in shared} == {name: str(rows[name].dtype) for name in shared}
    assert "object" not in {str(dtype) for dtype in frame.dtypes}


def test_claimed_planned_and_measured_stand_in_columns_of_their_own(write: Write, full: list[Record]) -> None:
    frame = quantbench.tables.precision(write(full)).set_index("name")

    assert frame.loc["FP16", ["claimed_size_7b", "weight_bytes"]].tolist() == ["14GB", 2_000_000]
    assert frame["planned_size_7b"].dtype == "Int64"
    assert 13.4e9 < frame.loc["FP16", "planned_size_7b"] < 13.5e9
    assert frame["claimed_size_7b"].isna().tolist() == [False] * 4 + [True] * 2
    assert set(frame["run_id"]) == {"run-1"}
    assert frame["started_at"].iloc[0] == pd.Timestamp("2026-01-01", tz="UTC")
    sources = frame.attrs["sources"]
    assert [sources[name] for name in ("claimed_size_7b", "planned_size_7b", "weight_bytes")] == [
        "claimed", "planned", "measured",
    ]  # fmt: skip
    assert frame.attrs["units"]["weight_bytes"] == "bytes"
    assert frame.attrs["titles"]["planned_size_7b"] == "7B size"
    assert "canary (an instrument check)" in frame.attrs["caption"]
    assert any(note.startswith("claimed: ") for note in frame.attrs["notes"])


def test_a_null_is_null_whatever_its_kind(write: Write, record: Make, missing: Callable[[str], Missing]) -> None:
    none = missing("not measured")
    rows = write([record("torch/fp32"), record("torch/fp16", weight_bytes=none, bits_per_weight=none, kld_mean=none)])
    frame = tables.KINDS["methods"](rows)

    assert frame["runs_on_cuda_raw"].isna().any()
    assert frame["finetunes_raw"].dtype == "boolean"
    frame = quantbench.tables.precision(rows).set_index("name")
    assert frame.loc["FP16", ["weight_bytes", "kld_mean", "quality_loss"]].isna().all()
    assert [str(frame[name].dtype) for name in ("weight_bytes", "kld_mean", "quality_loss")] == ["Int64", "float64", "str"]


def test_several_runs_are_told_apart(write: Write, record: Make) -> None:
    write([record()], run_id="one", day=1)
    frame = quantbench.tables.gguf(write([record(), record(model="other/model")], run_id="two", day=2))

    measured = frame[frame["weight_bytes"].notna()]
    assert measured[["run_id", "model"]].to_numpy().tolist() == [["one", "canary"], ["two", "canary"], ["two", "other/model"]]
    assert len(frame.attrs["caption"].splitlines()) == 3
    assert len(set(frame.attrs["notes"])) == len(frame.attrs["notes"])


def test_half_a_byte_is_kept(write: Write, record: Make) -> None:
    """The middle of two repeats need not be whole."""
    rows = write([record(repeat=0, weight_bytes=3), record(repeat=1, weight_bytes=4)])
    assert quantbench.tables.gguf(rows)["weight_bytes"].dropna().tolist() == [3.5]


def test_without_rows_there_is_what_can_be_said_unmeasured() -> None:
    frame = quantbench.tables.precision()
    assert frame["title"].tolist() == ["Precision levels"] * 4
    assert frame["planned_size_7b"].notna().all()
    assert frame[["weight_bytes", "kld_mean", "quality_loss"]].isna().all(axis=None)
    assert [str(frame[name].dtype) for name in ("weight_bytes", "kld_mean", "quality_loss")] == ["Int64", "float64", "str"]
    assert quantbench.tables.methods().empty


def test_tables_of_other_columns_are_one_below_the_other() -> None:
    count, share = Heading(key="count", title="Count", unit="bytes"), Heading(key="share", title="Share", numeric=True)
    text = Heading(key="text", title="Text")
    first = _table((2, "a"), (None, "b"), headings=(count, text), title="First")
    second = _table((True, 1), (None, 0.5), headings=(Heading(key="flag", title="Flag"), share), title="Second")
    frame = as_frame([first, second, _table((None,), headings=(Heading(key="none", title="None", numeric=True),))])

    assert frame["title"].tolist() == ["First"] * 2 + ["Second"] * 2 + ["A table"]
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        "title": "str", "count": "Int64", "text": "str", "flag": "boolean", "share": "float64", "none": "float64",
    }  # fmt: skip
    assert frame["share"].dropna().tolist() == [1.0, 0.5]
    assert frame.attrs["caption"] == "Of First\nOf Second\nOf A table"
    assert frame.attrs["notes"] == ["a note"]


def test_values_of_several_kinds_stay_as_they_are() -> None:
    frame = as_frame([_table(("yes",), (2.5,), headings=(Heading(key="value", title="Value"),))])
    assert frame["value"].tolist() == ["yes", 2.5]


def test_a_frame_goes_to_parquet_and_back(tmp_path: Path, write: Write, full: list[Record]) -> None:
    frame = quantbench.tables.gguf(write(full))
    frame.to_parquet(tmp_path / "gguf.parquet")
    back = pd.read_parquet(tmp_path / "gguf.parquet")
    pd.testing.assert_frame_equal(back, frame, check_dtype=False)
    assert back.attrs == frame.attrs
