"""CSV: every column, read back equal by pandas, and no cell that a spreadsheet runs."""

from __future__ import annotations

import csv
import json
import math
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench import load
from quantbench.core.record import Column
from quantbench.export import EXPORTERS, export
from quantbench.results.schema import TABLES, table_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


def _text(results: str, table: str) -> str:
    return "".join(export("csv", load(results, table), table))


def _read(text: str) -> pd.DataFrame:
    """As the module tells it."""
    return pd.read_csv(StringIO(text, newline=""), keep_default_na=False, na_values=[""])


def _unguarded(column: Column, value: Any) -> Any:
    """What a cell, read by pandas, stands for."""
    if pd.isna(value):
        return None
    match column.kind:
        case "string":
            return str(value).removeprefix("'")
        case "ids" | "floats":
            return json.loads(value)
        case "time":
            return pd.Timestamp(value)
        case "int":
            return int(value)
    return value


def _stored(value: Any) -> Any:
    """A stored value, with None for what CSV writes as nothing."""
    if isinstance(value, np.ndarray):
        return [each if math.isfinite(each) else None for each in value.tolist()]
    missing = value is None or pd.isna(value) or value in ("", math.inf)
    return None if missing else value


@pytest.mark.parametrize("table", TABLES)
def test_pandas_reads_back_what_was_stored(results: str, table: str) -> None:
    frame, back = load(results, table), _read(_text(results, table))
    assert list(back) == [column.name for column in table_columns(table)]
    assert len(back) == len(frame) > 0
    filled = 0
    for column in table_columns(table):
        wanted = [_stored(value) for value in frame[column.name]]
        assert [_unguarded(column, value) for value in back[column.name]] == wanted, column.name
        filled += any(value is not None for value in wanted)
    assert filled > 5


def test_no_text_is_a_formula(results: str, hostile: Sequence[str]) -> None:
    texts = {column.name for table in TABLES for column in table_columns(table) if column.kind == "string"}
    cells = [
        row[name]
        for table in TABLES
        for row in csv.DictReader(StringIO(_text(results, table), newline=""))
        for name in texts & set(row)
    ]
    assert "'=cmd|'/c calc'!A1" in cells
    assert len([cell for cell in cells if cell.startswith("'")]) >= 10
    assert [cell for cell in cells if cell.lstrip().startswith(FORMULA) or cell.startswith(FORMULA)] == []


def test_a_number_below_zero_stays_a_number(results: str) -> None:
    back = _read(_text(results, "scenarios"))
    assert back["ln_ppl_ratio"].dropna().tolist() == [-0.001]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_text_comes_back_and_none_is_a_formula(text: str) -> None:
    column = Column("said", "", kind="string")
    written = "".join(EXPORTERS["csv"].write([{"said": text}], [column]))
    (header,), *rest = csv.reader(StringIO(written, newline=""))
    cell = rest[0][0] if rest[0] else ""
    assert header == "said"
    assert cell.removeprefix("'") == text
    assert not cell.startswith(FORMULA)


def test_a_nul_is_left_out() -> None:
    written = "".join(EXPORTERS["csv"].write([{"said": "\0=1"}], [Column("said", "", kind="string")]))
    assert written == "said\n'=1\n"


def test_the_example_of_the_module_works(results: str, hostile: Sequence[str]) -> None:
    back = _read(_text(results, "outputs"))
    assert tuple(back["variant_text"].str.removeprefix("'")) == tuple(hostile)


def test_many_rows(results: str) -> None:
    """More than are made at a time."""
    one = load(results, "samples")
    many = pd.concat([one] * 4000, ignore_index=True)
    pieces = list(export("csv", many, "samples"))
    assert len(pieces) > 2
    assert len(_read("".join(pieces))) == len(many)
