"""Every column of a metric says what it is: unit, meaning, formula and source."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from quantbench.core.record import Column
from quantbench.metrics import METRICS, Metric

STUB = Path(__file__).parents[1] / "stub_method.py"
UNITLESS = ("string", "bool")


def lacking(metrics: Iterable[Metric]) -> list[str]:
    """What columns do not say, as ``column: what``. Of a metric from elsewhere only unit and meaning are asked."""
    found = []
    for metric in metrics:
        ours = metric.compute.__module__.startswith("quantbench.")
        for column in metric.columns:
            asked = ["doc", *(["formula", "source"] if ours else []), *([] if column.kind in UNITLESS else ["unit"])]
            found += [f"{column.name}: {name}" for name in asked if not getattr(column, name).strip()]
    return found


def test_every_column_has_unit_meaning_formula_and_source() -> None:
    assert len([column for metric in METRICS for column in metric.columns]) > 100
    assert lacking(METRICS) == []


@pytest.mark.parametrize("gap", ["doc", "formula", "source", "unit"])
def test_a_gap_is_found(gap: str) -> None:
    column = replace(METRICS["load"].columns[0], **{gap: " "})
    assert lacking([replace(METRICS["load"], columns=(column,))]) == [f"{column.name}: {gap}"]


def test_a_flag_or_a_text_needs_no_unit() -> None:
    column = replace(METRICS["load"].columns[0], kind="bool", unit="")
    assert lacking([replace(METRICS["load"], columns=(column,))]) == []


def test_a_metric_from_elsewhere_may_leave_out_formula_and_source() -> None:
    spec = importlib.util.spec_from_file_location("stub_method_documented", STUB)
    assert spec
    assert spec.loader
    stub = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stub)
    plugins: Metric = stub.stub_answers
    assert not plugins.columns[0].formula
    assert lacking([plugins]) == []
    assert lacking([replace(plugins, columns=(Column("stub_answers", ""),))]) == ["stub_answers: doc", "stub_answers: unit"]


def test_formulas_and_sources_are_one_line_of_plain_text() -> None:
    texts = [text for metric in METRICS for column in metric.columns for text in (column.formula, column.source)]
    assert [text for text in texts if not (text.isascii() and text.isprintable())] == []
