"""Tables as Markdown, CSV, JSON and text."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench import tables
from quantbench.core.errors import UsageError
from quantbench.results.rows import groups
from quantbench.tables.render import as_markdown, as_text, render
from quantbench.tables.table import Cell, Heading, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from quantbench.core.record import Record

    Write = Callable[..., pd.DataFrame]


def _table(*texts: str | None) -> Table:
    headings = tuple(Heading(key=f"k{index}", title=f"T{index}") for index in range(len(texts)))
    row = tuple(Cell(text) for text in texts)
    return Table(name="demo", title="Demo", facts={"model": "m|1"}, caption="C", headings=headings, rows=(row,))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]]


def test_markdown_has_as_many_cells_in_every_line(write: Write, full: list[Record]) -> None:
    for block in as_markdown(tables.build("all", write(full))).split("### ")[1:]:
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(_cells(line)) for line in lines}) == 1
        assert len(lines) > 2


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_no_text_breaks_a_markdown_table(texts: list[str]) -> None:
    lines = [line for line in as_markdown([_table(*texts)]).split("\n") if line.startswith("|")]

    assert len(lines) == 3
    assert [len(_cells(line)) for line in lines] == [len(texts)] * 3


def test_markdown_escapes_reasons_and_names(write: Write, record: Callable[..., Record]) -> None:
    frame = write([record("gguf/q4_k_m", status="error", reason="a|b\n<b>", model="mo|del")])
    text = as_markdown(tables.build("gguf", frame))

    assert r"Q4_K_M: error, a\|b &lt;b&gt;" in text
    assert r"mo\|del" in text


def test_csv_holds_raw_values_and_empty_nulls(write: Write, full: list[Record], record: Callable[..., Record]) -> None:
    built = tables.build("all", write([*full[:-2], record("gguf/q2_k", status="oom", reason='killed, "sadly"\nyes')]))
    read = pd.read_csv(io.StringIO(render(built, "csv")), keep_default_na=False, na_values=[""])

    assert len(read) == sum(len(table.rows) for table in built)
    assert list(read.columns[:3]) == ["table", "model", "instrument_check"]
    read = read[read["table"].isin(["precision", "gguf"])]
    int8 = read[(read["name"] == "INT8")].iloc[0]
    assert (int8["weight_bytes"], int8["claimed_size_7b"]) == (1_187_500, "7GB")
    failed = read[read["name"] == "Q2_K"].iloc[0]
    assert pd.isna(failed["kld_mean"])
    assert failed["reason"] == 'killed, "sadly"\nyes'


def test_json_is_strict_with_nulls_units_and_facts(write: Write, record: Callable[..., Record]) -> None:
    built = tables.build("gguf", write([record("gguf/q4_k_m", kld_mean=float("nan"), decode_tps=float("inf"))]))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    [body] = json.loads(render(built, "json"), parse_constant=refuse)
    row = next(each for each in body["rows"] if each["name"] == "Q4_K_M")

    assert (row["kld_mean"], row["decode_tps"], row["quality"]) == (None, None, None)
    assert (body["table"], body["model"], body["run_id"], body["instrument_check"]) == ("gguf", "canary", "run-1", True)
    units = {column["key"]: column["unit"] for column in body["columns"]}
    assert (units["weight_bytes"], units["kld_mean"], units["decode_tps"]) == ("bytes", "nats", "tokens/s")


@pytest.mark.parametrize("width", [40, 80, 120, 400])
def test_text_keeps_to_the_width_and_loses_nothing(write: Write, full: list[Record], width: int) -> None:
    [table] = tables.build("gguf", write(full))
    lines = as_text([table], width).splitlines()

    # one column beside the repeated first one may be wider than a very narrow terminal
    assert max(map(len, lines)) <= max(width, 45)
    joined = "\n".join(lines)
    for heading, texts in table.shown_columns():
        assert heading.title in joined
        assert all(text in joined for text in texts)
    first = [line for line in lines if line.startswith("Q2_K")]
    assert (len(first) == 1) == (width == 400)


def test_text_passes_no_terminal_escapes_and_reads_no_markup() -> None:
    text = as_text([_table("[bold]x[/bold]", "red\x1b[31m", None)], 80)

    assert "[bold]x[/bold]" in text
    assert "\x1b" not in text
    assert "–" in text


def test_titles_say_claimed_or_measured_only_where_both_stand(write: Write, full: list[Record]) -> None:
    from quantbench.tables.kinds.measured import overview

    frame = write(full)

    assert "Bits (claimed)" in as_markdown(tables.build("gguf", frame))
    assert "measured)" not in as_markdown(overview(groups(frame)))


def _sentences(*texts: str, listed: bool = False) -> Table:
    headings = (
        Heading(key="k", title="Name"),
        *(Heading(key=f"k{at}", title=f"T{at}", wraps=True) for at in range(len(texts))),
    )
    row = (Cell("one"), *(Cell(text) for text in texts))
    return Table(name="demo", title="D", facts={}, caption="C", headings=headings, rows=(row, row), listed=listed)


@pytest.mark.parametrize(("width", "panels"), [(40, 1), (60, 1), (20, 2), (500, 1)])
def test_columns_that_wrap_are_squeezed_before_others_go_below(width: int, panels: int) -> None:
    lines = as_text([_sentences("some words " * 9, "others " * 5)], width).splitlines()

    assert len([line for line in lines if line.startswith("Name")]) == panels
    assert width < 30 or max(map(len, lines)) <= width
    assert " ".join(lines).count("words") == 9 * 2
    rows = [line for line in lines if "words" in line]
    assert (len(rows) == 2) == (width == 500)


def test_a_short_column_is_not_squeezed_for_a_long_one() -> None:
    lines = as_text([_sentences("short text", "long " * 30)], 60).splitlines()

    assert [line for line in lines if line.startswith("one   short text  long")]
    assert max(map(len, lines)) <= 60


def test_columns_of_one_title_go_below_together() -> None:
    titles = ("Name", "Bits", "7B size", "7B size", "Other")
    headings = tuple(Heading(key=f"k{at}", title=title) for at, title in enumerate(titles))
    table = Table(name="d", title="D", facts={}, caption="C", headings=headings, rows=(tuple(map(Cell, "abcde")),))
    heads = [line.split("  ") for line in as_text([table], 22).splitlines() if line.startswith("Name")]

    assert [[title for title in head if title] for head in heads] == [
        ["Name", "Bits"],
        ["Name", "7B size", "7B size"],
        ["Name", "Other"],
    ]
    assert len([line for line in as_text([table], 16).splitlines() if line.startswith("Name")]) == 4


def test_listed_rows_stand_below_each_other() -> None:
    table = _sentences("first\nof all", "", listed=True)
    lines = as_text([replace(table, rows=(table.rows[0], (Cell("a sentence " * 5), Cell(None), Cell("yes"))))], 40).splitlines()

    assert lines[3:] == [
        "one", "    T0: first of all", "", "a sentence a sentence a sentence a", "sentence a sentence", "    T1: yes", "",
    ]  # fmt: skip
    assert "| one | first of all |" in as_markdown([table])


def test_nothing_renders_to_nothing() -> None:
    assert [render([], form) for form in ("text", "md")] == ["", ""]
    assert json.loads(render([], "json")) == []


def test_an_unknown_format_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="unknown format 'markdown'"):
        render([], "markdown")


EVIL = "=HYPERLINK(1)\r\nnext\x1b[31m \u202eright to left\u2066"


def test_csv_runs_no_formula_and_breaks_no_row() -> None:
    table = _table(EVIL, "@SUM(1)", "'quoted", "plain, as it is", None)
    read = pd.read_csv(io.StringIO(render([table], "csv")), keep_default_na=False, na_values=[""])
    assert len(read) == 1
    told = [str(read[f"k{index}"].iloc[0]) for index in range(4)]
    assert told == ["'=HYPERLINK(1)\nnext [31m right to left", "'@SUM(1)", "''quoted", "plain, as it is"]


@pytest.mark.parametrize("form", ["text", "md", "csv", "json"])
def test_no_format_commands_a_terminal_or_turns_a_line(form: str) -> None:
    text = render([_table(EVIL)], form)
    assert all(char.isprintable() or char == "\n" for char in text)
    if form == "json":
        assert json.loads(text)[0]["rows"] == [{"k0": EVIL}]  # escaped, and all there


def test_reasons_below_a_table_fit_the_terminal_and_are_given_once() -> None:
    """Two figures of one scenario lack the same; a third scenario has the same reason."""
    headings = (*(Heading(key=f"k{at}", title=f"T{at}") for at in range(2)), Heading(key="why", title="Why", wraps=True))
    cells = [("one", "decode " * 7), ("one", "prefill " * 6), ("two", "decode " * 7)]
    rows = tuple((Cell(name), Cell(figure.strip()), Cell("too few " * 12)) for name, figure in cells)
    lines = as_text([Table(name="d", title="D", facts={}, caption="C", headings=headings, rows=rows)], 60).splitlines()

    assert max(map(len, lines)) <= 60
    assert " ".join(lines).count("too few") == 2 * 12
    assert [line[:3] for line in lines if line[:3] in ("one", "two")] == ["one", "one", "two", "one", "two"]
