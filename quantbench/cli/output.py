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

from quantbench.core.text import one_line

Format = Literal["text", "json"]

_UNLIMITED = 10_000


def message(text: str) -> None:
    """One sentence to stderr, headed by the program's name."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble(("quantbench: ", "bold red"), one_line(text)))


def counted(count: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count} {noun}" + "s" * (count != 1)


@contextmanager
def warnings_as_messages() -> Iterator[None]:
    """What is warned of meanwhile is said as messages, each once and whatever the process does with warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for text in dict.fromkeys(str(each.message) for each in caught if each.category is UserWarning):
                message(text)


def paragraph(text: str) -> str:
    """``text`` wrapped between words on a terminal, and as one line elsewhere; nothing in it commands a terminal."""
    line = one_line(text)
    return textwrap.fill(line, shutil.get_terminal_size().columns) if sys.stdout.isatty() else line


def print_json(value: Any) -> None:
    """``value`` as JSON to stdout."""
    typer.echo(json.dumps(value, indent=2))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns to stdout; lines are wrapped on a terminal and as long as they need to be elsewhere."""
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
