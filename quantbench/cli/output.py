"""What commands print: results to stdout, messages to stderr; coloured and wrapped on a terminal, plain elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import typer

from quantbench.core.text import one_line, shortened

Format = Literal["text", "json"]

_UNLIMITED = 10_000
"""Columns of output that goes to no terminal: more than any table has, so that rich wraps nothing."""


def message(text: str) -> None:
    """One sentence to stderr, headed by the program's name."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble(("quantbench: ", "bold red"), one_line(shortened(text))))


def counted(count: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count} {noun}" + "s" * (count != 1)


@contextmanager
def warnings_as_messages() -> Iterator[None]:
    """Warnings raised inside become messages, each shown once, whatever filters the process has set."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for text in dict.fromkeys(str(each.message) for each in caught if each.category is UserWarning):
                message(text)


def paragraph(text: str) -> str:
    """``text`` wrapped between words on a terminal, and as one line elsewhere, without control characters."""
    line = one_line(text)
    return textwrap.fill(line, shutil.get_terminal_size().columns) if sys.stdout.isatty() else line


def print_json(value: Any) -> None:
    """``value`` as JSON to stdout."""
    typer.echo(json.dumps(value, indent=2))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns to stdout; lines are wrapped on a terminal and never elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headers, box=None, pad_edge=False, show_header=any(headers))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else _UNLIMITED)
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
