"""``quantbench report``: a run as one page that works offline, or as a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantbench.cli.guard import INSUFFICIENT
from quantbench.cli.output import counted, message
from quantbench.cli.results import ResultsOption, read, reading, require_run
from quantbench.core.errors import StoreError, UsageError
from quantbench.core.outside import exists, is_file
from quantbench.core.units import format_bytes
from quantbench.results.runs import Runs

if TYPE_CHECKING:
    import pandas as pd

    from quantbench.report import Results

HISTORY, FILES = 100, 400
"""Runs through which a report follows a scenario, its own among them, and the files of their rows from which on it reads only
one more run."""

_PAGES = ("html", "htm")
_PICTURES = ("png", "svg")


def report(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="page (.html), or a picture to share (.png, .svg)")
    ] = Path("report.html"),
    *,
    results: ResultsOption = "results",
    run_id: Annotated[str | None, typer.Option("--run", metavar="ID", help="a run's id (default: the latest run)")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="model (default: all)")] = None,
) -> None:
    """Write a run as one page, or as a picture."""
    from quantbench.report import select

    form = output.suffix.removeprefix(".").lower()
    if form not in (*_PAGES, *_PICTURES):
        raise UsageError(f"{str(output)!r} is neither a page nor a picture; end its name in .html, .png or .svg")
    if exists(output) and not is_file(output):
        raise UsageError(f"{output} is not a regular file; name another")
    with reading():
        stored = Runs(results)
        scenarios = _of_run(stored, run_id, model)
        run = str(scenarios["run_id"].iloc[0])
        history = _followed(stored, scenarios)
        unread = len(stored.ids) - history["run_id"].nunique()
    samples, outputs, runs = (read(results, table, run)[0] for table in ("samples", "outputs", "runs"))
    of_run = select(scenarios, samples=samples, outputs=outputs, runs=runs, model=model)
    found = replace(of_run, history=history[history["model"].isin(set(of_run.rows["model"]))], unread=unread)
    size = _write(output, found, form)
    rows = counted(len(found.rows), "row")
    others = f"; {counted(unread, 'earlier run')} not read" if unread else ""
    typer.echo(f"{output}: run {found.run_id}, {rows}, {format_bytes(size)}{others}")


def _of_run(runs: Runs, run_id: str | None, model: str | None) -> pd.DataFrame:
    """The rows of the run to report on: the one named, or the latest (of the model)."""
    from quantbench.report import latest_of

    if run_id is not None:
        require_run(runs, run_id)
    elif model is not None:
        run_id = latest_of(model, runs.latest_first(("run_id", "model")))
    return runs.latest() if run_id is None else runs.of([run_id])


def _followed(runs: Runs, scenarios: pd.DataFrame) -> pd.DataFrame:
    """What is followed of a run, whose rows are given, and of the last others."""
    import pandas as pd

    from quantbench.report import followed

    columns, own = followed(), str(scenarios["run_id"].iloc[0])
    if set(runs.ids) == {own}:
        return scenarios[columns]
    try:
        others = runs.latest(HISTORY - 1, exclude=[own], files=max(0, FILES - len(scenarios)), columns=columns)
    except StoreError:  # there are others, and none of them can be read
        return scenarios[columns]
    return pd.concat([others, scenarios[columns]], ignore_index=True)


def _write(output: Path, found: Results, form: str) -> int:
    """Write the file and return its size in bytes; a message and exit code 4 where a picture has nothing to show."""
    from quantbench.report import page, picture

    if form in _PAGES:
        return output.write_bytes(page(found).encode())
    drawn = picture(found, form)
    if drawn is None:
        message(f"run {found.run_id} has no variant with weights, decode speed and KLD to draw; a .html page shows the rest")
        raise typer.Exit(INSUFFICIENT)
    return output.write_bytes(drawn)
