"""``quantbench tables`` and ``recommend``: what the stored rows say, the decision first."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from quantbench.cli._catalogue import FormatOption
from quantbench.cli._guard import INSUFFICIENT
from quantbench.cli._output import message, paragraph, print_json
from quantbench.errors import StoreError, UsageError, unknown_name
from quantbench.tables import ALL, build, latest_run
from quantbench.units import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

ResultsOption = Annotated[str, typer.Option("--results", metavar="PATH", help="where the parquet tables are")]


def tables(
    kind: Annotated[str, typer.Argument(metavar="TABLE", help="precision, gguf, another kind that is installed, or all")] = ALL,
    results: ResultsOption = "results",
    run_id: Annotated[str | None, typer.Option("--run", metavar="ID", help="a run's id (default: the latest run)")] = None,
    output: Annotated[Literal["text", "md", "csv", "json"], typer.Option("--format", help="how to print them")] = "text",
) -> None:
    """Print the tables of a run, the decision first."""
    from quantbench.tables.render import render

    rows = _rows(results, run_id)
    found = build(kind, rows)
    if not found:
        message(f"run {rows['run_id'].iloc[0]} has no rows for table {kind!r}; quantbench run measures some")
        raise typer.Exit(INSUFFICIENT)
    opening = _decision(rows, output) if output in ("text", "md") else []
    typer.echo("\n\n".join([*opening, render(found, output).rstrip("\n")]))


def recommend(
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="for the running weights, such as 24GiB or 16GB")],
    max_kld: Annotated[float | None, typer.Option("--max-kld", metavar="NATS", help="limit of the mean KL divergence")] = None,
    min_tps: Annotated[float | None, typer.Option("--min-tps", metavar="TPS", help="least decode speed in tokens/s")] = None,
    results: ResultsOption = "results",
    output: FormatOption = "text",
) -> None:
    """Say which variant of the latest run to ship."""
    from quantbench.tables.decision import decide

    limits = {"max_kld": _limit("--max-kld", max_kld), "min_tps": _limit("--min-tps", min_tps)}
    memory_bytes = parse_bytes(memory)
    choices = decide(_rows(results, None), memory_bytes=memory_bytes, **limits)
    if not choices:
        message("the last run answered no prompts, and a pick takes decode speed and KLD; run one with prompts such as ten")
        raise typer.Exit(INSUFFICIENT)
    if output == "json":
        print_json([{"sentence": choice.sentence, **asdict(choice)} for choice in choices])
    else:
        typer.echo("\n\n".join(paragraph(choice.sentence) for choice in choices))
    if not any(choice.pick for choice in choices):
        raise typer.Exit(INSUFFICIENT)


def stored(results: str, table: str = "scenarios") -> pd.DataFrame:
    """The rows of a stored table; without any: a sentence and exit code 4."""
    from quantbench.store import load

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            frame = load(results, table)
        except StoreError as error:
            frame, reason = None, str(error)
    for each in caught:
        if each.category is UserWarning:
            message(str(each.message))
    if frame is None:
        message(reason)
        raise typer.Exit(INSUFFICIENT)
    return frame


def _rows(results: str, run_id: str | None) -> pd.DataFrame:
    """The rows of one run, the latest unless told otherwise; without any: a sentence and exit code 4."""
    frame = stored(results)
    if run_id is None:
        return latest_run(frame)
    if run_id not in set(frame["run_id"]):
        raise unknown_name("run", run_id, frame["run_id"].unique())
    return frame[frame["run_id"] == run_id]


def _decision(rows: pd.DataFrame, output: str) -> Sequence[str]:
    from quantbench.tables.decision import decide
    from quantbench.tables.render import escape_markdown

    shown = escape_markdown if output == "md" else paragraph
    return [shown(choice.sentence) for choice in decide(rows)]


def _limit(name: str, value: float | None) -> float | None:
    if value is not None and not value >= 0:  # so that nan is refused as well
        raise UsageError(f"{name} {value:g} is no limit; give a number from 0 on")
    return value
