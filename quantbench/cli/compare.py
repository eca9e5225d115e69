"""``quantbench compare``: a candidate against a baseline, with an exit code for a gate."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from quantbench.cli.guard import INSUFFICIENT, REGRESSION
from quantbench.cli.output import message, paragraph, print_json, warnings_as_messages
from quantbench.cli.results import ResultsOption
from quantbench.core.errors import StoreError, UsageError

_SIDE = "a results folder or URI (its last run), a .parquet file, a pytest-benchmark .json file, or run ids"


def compare(
    baseline: Annotated[str, typer.Argument(metavar="BASELINE", help=_SIDE)],
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help="named in the same ways")],
    *,
    again: Annotated[str | None, typer.Option("--again", metavar="SIDE", help="a second measurement of the candidate")] = None,
    window: Annotated[int, typer.Option("--window", metavar="N", help="use the last N runs of a baseline folder")] = 1,
    threshold: Annotated[
        list[str] | None,
        typer.Option("--threshold", metavar="METRIC=PCT", help="smallest change that counts, in percent, such as decode=5"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="also show what stayed the same")] = False,
    results: ResultsOption = "results",
    output: Annotated[Literal["text", "md", "json", "junit"], typer.Option("--format", help="output format")] = "text",
) -> None:
    """Compare a candidate with a baseline."""
    from quantbench.judge.compare import Change, parse_threshold, show
    from quantbench.judge.compare import compare as compared
    from quantbench.judge.compare.sides import is_whole, load_side
    from quantbench.tables.render import render

    if window < 1:
        raise UsageError(f"--window {window} holds no run; give a whole number of at least 1")
    thresholds = dict(map(parse_threshold, threshold or ()))
    try:
        with warnings_as_messages():
            after = load_side(candidate, results)
            before = load_side(baseline, results, window=window, exclude=tuple(after["run_id"].unique()))
            whole = is_whole(after, candidate, results)
            further = load_side(again, results) if again else None
    except StoreError as error:
        message(str(error))
        raise typer.Exit(INSUFFICIENT) from None
    found = compared(before, after, again=further, thresholds=thresholds, whole=whole)
    if output == "json":
        print_json(show.as_data(found))
    elif output == "junit":
        typer.echo(show.as_junit(found), nl=False)
    elif output == "md":
        typer.echo(show.as_markdown(found, everything=everything).rstrip("\n"))
    else:
        table = render([show.table(found, everything=everything)], "text")
        typer.echo(f"{paragraph(show.sentence(found))}\n\n{table}".rstrip("\n"))
    if found.of(Change.WORSE):
        raise typer.Exit(REGRESSION)
    if not found.conclusive:
        raise typer.Exit(INSUFFICIENT)
