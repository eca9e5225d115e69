"""Tables of quantbench.tables on a page: nothing of them is lost, and headings stand over their own columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from quantbench.report.sections.tables import SEEDS, Sheet, served, sheet, sheets
from quantbench.tables import KINDS
from quantbench.tables.table import Cell, Heading, Table

if TYPE_CHECKING:
    from pathlib import Path

    from quantbench.report import Results


@pytest.fixture
def shown(everything_results: Results, artifacts: None, everything_page: Path) -> tuple[list[Sheet], list[Sheet]]:
    """The tables of the run of everything."""
    return sheets(everything_results.groups)


def test_the_three_of_the_tutorials_come_first_and_every_other_follows(
    shown: tuple[list[Sheet], list[Sheet]], everything_results: Results
) -> None:
    first, others = shown
    assert [each.title.partition(":")[0] for each in first] == [
        "Precision levels", "GGUF quantization levels", "Quantization methods", "Quantization methods",
    ]  # fmt: skip
    made = [table for kind in KINDS for table in kind.tables(everything_results.groups) if kind.name not in SEEDS]
    of_servers = served(everything_results.groups)
    assert [each.title for each in of_servers] == ["Served: some/served, prompts ten"]
    assert sorted(each.title for each in [*others, *of_servers]) == sorted(table.title for table in made)
    assert others


def test_every_cell_and_note_is_there_under_its_heading(
    shown: tuple[list[Sheet], list[Sheet]], everything_results: Results
) -> None:
    tables = [table for name in SEEDS for table in KINDS[name].tables(everything_results.groups)]
    for table, made in zip(tables, shown[0], strict=True):
        columns = table.shown_columns()
        assert made.notes == table.notes
        assert [[field.text for field in row] for row in made.rows] == [
            list(row) for row in zip(*(texts for _, texts in columns), strict=True)
        ]
        assert sum(head.span for head in made.upper) == len(columns)
        assert sum(head.lines == 2 for head in made.upper) + len(made.lower) == len(columns)
        sources = {heading.source for heading, _ in columns if heading.source}
        assert {"claimed", "measured"} <= sources
        assert {head.source for head in made.lower if head.source} == sources


def test_columns_of_one_title_share_a_heading() -> None:
    headings = (
        Heading(key="name", title="Level"),
        Heading(key="a", title="Bits", source="claimed"),
        Heading(key="b", title="Bits, 7B", source="planned", numeric=True),
        Heading(key="c", title="Hidden", shown=False),
        Heading(key="d", title="Notes", source="measured"),
    )
    row = (Cell("Q4"), Cell("4bit"), Cell(4.5), Cell(1), Cell(None))
    made = sheet(Table(name="t", title="T", facts={}, caption="c", headings=headings, rows=(row,)))
    assert [(head.title, head.span, head.lines) for head in made.upper] == [("Level", 1, 2), ("Bits", 2, 1), ("Notes", 1, 1)]
    assert [(head.title, head.source) for head in made.lower] == [("", "claimed"), ("7B", "planned"), ("", "measured")]
    assert [(field.text, field.looks) for field in made.rows[0]] == [
        ("Q4", "starts"), ("4bit", "starts"), ("4.5", "number"), ("–", "starts missing"),
    ]  # fmt: skip


def test_a_table_without_claims_has_one_line_of_headings() -> None:
    headings = (Heading(key="a", title="Size, x torch/fp32", source="measured", numeric=True),)
    made = sheet(Table(name="t", title="T", facts={}, caption="c", headings=headings, rows=((Cell(0.5),),)))
    assert made.upper == ()
    assert [(head.title, head.source) for head in made.lower] == [("Size, x torch/fp32", "")]
    assert made.rows[0][0].looks == "number"
