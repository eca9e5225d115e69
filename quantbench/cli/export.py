"""``quantbench export``: stored rows in the format that another tool reads."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from quantbench.cli.complete import completion
from quantbench.cli.guard import INSUFFICIENT
from quantbench.cli.output import counted, message
from quantbench.cli.results import ResultsOption, reading, rows_of_run
from quantbench.core.cache import write_atomically
from quantbench.core.errors import UsageError
from quantbench.core.text import visible
from quantbench.export import EXPORTERS
from quantbench.export import export as exported
from quantbench.results.schema import TABLES
from quantbench.results.store import load

if TYPE_CHECKING:
    import pandas as pd


def export(
    form: Annotated[
        str,
        typer.Option(
            "--to", metavar="FORMAT", help="model-card, csv, jsonl, github-action-benchmark, bmf, pytorch-hud, or a plug-in's",
            autocompletion=completion("to"),
        ),
    ],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="file to write or replace (default: stdout)")
    ] = None,
    results: ResultsOption = "results",
    run_id: Annotated[str | None, typer.Option("--run", metavar="ID", help="a run's id (default: the latest run)")] = None,
    table: Annotated[
        Literal["scenarios", "samples", "outputs", "runs"], typer.Option("--table", help="table; csv and jsonl take any")
    ] = "scenarios",
    better: Annotated[
        Literal["lower", "higher"] | None, typer.Option("--better", help="only metrics of which this direction is better")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME,...", help="only these metrics (default: all with a direction)"),
    ] = None,
) -> None:
    """Write a run for a dashboard, a spreadsheet, a model card."""
    figures = EXPORTERS[form].figures
    metrics = [name.strip() for names in metric or () for name in names.split(",")]
    rows = _rows(results, table, run_id)
    pieces = exported(form, rows, table, better=better, metrics=metrics)
    first = next(pieces, None)
    if first is None:
        message(f"run {rows['run_id'].iloc[0]} measured nothing for {form}; {_unmeasured(rows) or 'name other metrics'}")
        raise typer.Exit(INSUFFICIENT)
    if output is None:
        _print(chain([first], pieces))
    else:
        _write(output, chain([first], pieces), results)
    if figures and (reasons := _unmeasured(rows)):
        message(reasons)


def _rows(results: str, table: str, run_id: str | None) -> pd.DataFrame:
    """The rows of one run (the latest if ``run_id`` is None); where there are none, a message and exit code 4."""
    scenarios = rows_of_run(results, run_id)
    if table == "scenarios":
        return scenarios
    with reading("--table scenarios exports its scenarios"):
        return load(results, table, run=scenarios["run_id"].iloc[0])


def _unmeasured(rows: pd.DataFrame) -> str:
    """How many rows have no figures, and why; empty when all were measured."""
    others = rows.loc[rows["status"] != "ok", "status"]
    counts = ", ".join(f"{count} {status}" for status, count in others.value_counts().items())
    return f"{len(others)} of {counted(len(rows), 'row')} have no figures: {counts}" if counts else ""


def _print(pieces: Iterable[str]) -> None:
    """Write the text unchanged, past typer, which strips escapes; on a terminal, show control characters as escapes."""
    on_terminal = sys.stdout.isatty()
    for piece in pieces:
        sys.stdout.write(visible(piece, "\t\n") if on_terminal else piece)


def _write(path: Path, pieces: Iterable[str], results: str) -> None:
    """Replace the file with the text in UTF-8, whole or not at all; UsageError where it cannot be written."""
    place = path.resolve()
    if "://" not in results and any(place.is_relative_to(Path(results).resolve() / each) for each in TABLES):
        raise UsageError(f"{path} is inside the results, which only runs write to; name another file")
    if place.exists() and not place.is_file():
        raise UsageError(f"{path} is not a regular file; name another, or omit -o to write to stdout")
    try:
        write_atomically(place, pieces)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}); name a file in a writable folder") from error
