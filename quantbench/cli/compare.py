"""``quantbench compare``: a candidate against a baseline, with an exit code for a gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from quantbench.cli.guard import INSUFFICIENT, REGRESSION
from quantbench.cli.output import paragraph, print_json
from quantbench.cli.results import ResultsOption, reading
from quantbench.core.errors import UsageError

if TYPE_CHECKING:
    from quantbench.results.runs import Runs

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
    listed: dict[str, Runs] = {}
    with reading():
        after = load_side(candidate, results, listed=listed)
        before = load_side(baseline, results, window=window, exclude=tuple(after["run_id"].unique()), listed=listed)
        whole = is_whole(after, candidate, results)
        further = load_side(again, results, listed=listed) if again else None
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
