"""Tables as Markdown, CSV, JSON and text for a terminal. Model output and error messages are escaped on the way."""

from __future__ import annotations

import io
import json
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from quantbench.core.errors import unknown_name
from quantbench.core.text import csv_lines, escape_markdown, guarded, one_line
from quantbench.tables.table import DASH, Table

_FALLBACK_SIZE = (120, 24)
"""Columns and lines, where there is no terminal."""
_NARROWEST = 20
_GAP = 2
"""Blanks between two columns of a text table."""
_SQUEEZED = 12
"""Least width of a column that wraps, in terminal cells."""
_SEPARATOR = " · "


def render(tables: Sequence[Table], form: str) -> str:
    """The tables in one of FORMATS; UsageError for any other."""
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    return FORMATS[form](tables)


def as_markdown(tables: Sequence[Table]) -> str:
    """GitHub-flavoured Markdown."""
    return "\n".join(line for table in tables for line in _markdown(table))


def as_csv(tables: Sequence[Table]) -> str:
    """One CSV for all tables: raw values in base units, nulls empty; each row starts with its table, model, prompts and run.

    Texts keep no control characters except line breaks; text that a spreadsheet would run is guarded (``core.text``).
    "None" is a word here (no quality loss), so pass ``pandas.read_csv`` ``keep_default_na=False, na_values=[""]``.
    """
    facts = ("model", "instrument_check", "prompts", "reference", "run_id")
    records = [
        {"table": table.name, **{name: table.facts.get(name) for name in facts}, **record}
        for table in tables
        for record in _records(table)
    ]
    names = dict.fromkeys(name for record in records for name in record)
    return csv_lines([list(names), *([_csv_cell(record.get(name)) for name in names] for record in records)])


def as_json(tables: Sequence[Table]) -> str:
    """A list of objects with facts, columns (with units), rows of raw values in base units, and notes.

    Characters beyond ASCII are escaped, as some of them reverse the direction of a line or control a terminal.
    """
    body = [
        {
            "table": table.name,
            "title": table.title,
            **table.facts,
            "columns": [
                {"key": each.key, "title": each.title, "unit": each.unit, "source": each.source} for each in table.headings
            ],
            "rows": _records(table),
            "notes": list(table.notes),
        }
        for table in tables
    ]
    return json.dumps(body, indent=2, allow_nan=False)


def as_text(tables: Sequence[Table], width: int | None = None) -> str:
    """For a terminal of ``width`` columns (default: this one's). A wider table continues below, first column repeated."""
    columns = width or terminal_width()
    return "\n".join(line for table in tables for line in _text(table, columns))


def terminal_width() -> int:
    """Columns of this terminal; 120 where there is none."""
    return shutil.get_terminal_size(_FALLBACK_SIZE).columns


def text_width(table: Table) -> int:
    """Columns of a terminal that the table takes as text, its caption and notes aside."""
    columns = _blocks(table)
    return sum(column.width for column in columns) + _GAP * (len(columns) - 1)


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """``text`` on lines of at most ``width``, unless a word is longer; later lines are indented."""
    return textwrap.wrap(
        text[: len(text) - len(text.lstrip(" "))] + one_line(text),
        max(width, _NARROWEST),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _csv_cell(value: object) -> str:
    """A raw value; a text keeps its line breaks, and its other control characters become blanks."""
    if value is None:
        return ""
    return guarded("\n".join(map(one_line, value.splitlines()))) if isinstance(value, str) else str(value)


def _records(table: Table) -> list[dict[str, object]]:
    keys = [heading.key for heading in table.headings]
    return [{key: cell.value for key, cell in zip(keys, row, strict=True)} for row in table.rows]


def _markdown(table: Table) -> list[str]:
    columns = table.shown_columns()
    titles = [f"{each.title} ({each.source})" if table.compares and each.source else each.title for each, _ in columns]
    rules = ["---:" if each.numeric else "---" for each, _ in columns]
    lines = [titles, *(list(row) for row in zip(*(texts for _, texts in columns), strict=True))]
    cells = [[escape_markdown(cell) for cell in line] for line in lines]
    return [
        f"### {escape_markdown(table.title)}",
        "",
        escape_markdown(table.caption),
        "",
        *(f"| {' | '.join(line)} |" for line in [cells[0], rules, *cells[1:]]),
        "",
        *(f"- {escape_markdown(note)}" for note in table.notes),
        "",
    ]


def _text(table: Table, width: int) -> list[str]:
    lines = [one_line(table.title), *wrap(table.caption, width), ""]
    lines += _listed(table, width) if table.listed else _gridded(table, width)
    for note in table.notes:
        lines += wrap(f"- {note}", width, "  ")
    return [*lines, ""]


def _listed(table: Table, width: int) -> list[str]:
    """Rows below each other, without their empty cells."""
    (_, firsts), *others = table.shown_columns()
    lines = []
    for index, first in enumerate(firsts):
        cells = [f"{heading.title}: {one_line(texts[index])}" for heading, texts in others if texts[index].strip(f" {DASH}")]
        indent = " " * (2 * _GAP)
        lines += [*wrap(first, width), *wrap(indent + _SEPARATOR.join(cells), width, indent), ""]
    return lines


def _gridded(table: Table, width: int) -> list[str]:
    first, *others = _panels(_squeeze(_blocks(table), width), width)
    panels = [first, *map(_without_repetition, others)]
    return [line for panel in panels for line in [*_grid(_squeeze(panel, width)), ""]]


def _without_repetition(columns: Sequence[_Block]) -> list[_Block]:
    """A further group of columns without rows that are like the one above: the first group tells them apart."""
    rows = list(zip(*(column.texts for column in columns), strict=True))
    kept = [index for index, row in enumerate(rows) if index == 0 or row != rows[index - 1]]
    return [replace(column, texts=[column.texts[index] for index in kept]) for column in columns]


def _blocks(table: Table) -> list[_Block]:
    return [
        _Block(
            title=f"{heading.title}\n{heading.source}" if table.compares else heading.title,
            numeric=heading.numeric,
            texts=[one_line(text) for text in texts],
            wraps=heading.wraps,
        )
        for heading, texts in table.shown_columns()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """A column of a text table."""

    title: str
    numeric: bool
    texts: Sequence[str]
    wraps: bool
    limit: int | None = None
    """The width it was squeezed to, in terminal cells."""

    @property
    def width(self) -> int:
        """Its width in terminal cells."""
        from rich.cells import cell_len

        return self.limit or max(cell_len(text) for text in (*self.title.splitlines(), *self.texts))


def _squeeze(columns: Sequence[_Block], width: int) -> list[_Block]:
    """The columns, the wrapping ones narrowed to fit ``width``, widest first; unchanged if that leaves too little."""
    wide = [column for column in columns if column.wraps]
    others = sum(column.width for column in columns) - sum(column.width for column in wide)
    room = width - others - _GAP * (len(columns) - 1)
    if not wide or room < _SQUEEZED * len(wide):
        return list(columns)
    limits: dict[int, int] = {}
    for left, column in zip(range(len(wide), 0, -1), sorted(wide, key=lambda each: each.width), strict=True):
        limits[id(column)] = min(column.width, room // left)
        room -= limits[id(column)]
    return [replace(column, limit=limits.get(id(column))) for column in columns]


def _panels(columns: Sequence[_Block], width: int) -> list[list[_Block]]:
    """Columns in groups that fit ``width``, each led by the first column; those of one title stay together where possible."""
    first, *others = columns
    panels = [[first]]
    used = first.width
    for _, same in groupby(others, key=lambda column: column.title.splitlines()[0].partition(",")[0]):
        together = list(same)
        needed = sum(_GAP + column.width for column in together)
        for index, column in enumerate(together):
            room = needed if index == 0 and first.width + needed <= width else _GAP + column.width
            if len(panels[-1]) > 1 and used + room > width:
                panels.append([first])
                used = first.width
            panels[-1].append(column)
            used += _GAP + column.width
    return panels


def _grid(columns: Sequence[_Block]) -> list[str]:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    for column in columns:
        grid.add_column(
            Text(column.title), justify="right" if column.numeric else "left", no_wrap=not column.limit, width=column.width
        )
    for row in zip(*(column.texts for column in columns), strict=True):
        grid.add_row(*(Text(cell) for cell in row))
    out = io.StringIO()
    needed = sum(column.width + _GAP for column in columns)
    Console(file=out, width=needed, force_terminal=False, color_system=None).print(grid)
    return [line.rstrip() for line in out.getvalue().splitlines()]


FORMATS: Mapping[str, Callable[[Sequence[Table]], str]] = {
    "text": as_text,
    "md": as_markdown,
    "csv": as_csv,
    "json": as_json,
}
"""Every output format by the name that ``--format`` takes."""
