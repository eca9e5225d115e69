"""``quantbench tables`` and ``recommend``: what the stored rows say, the decision first."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from quantbench.cli.catalogue import FormatOption
from quantbench.cli.complete import completion
from quantbench.cli.guard import INSUFFICIENT
from quantbench.cli.output import message, paragraph, print_json, print_table, warnings_as_messages
from quantbench.cli.plan import BatchOption, ContextOption, planned_for
from quantbench.core.errors import StoreError, UsageError, unknown_name
from quantbench.core.text import one_line
from quantbench.core.units import parse_bytes
from quantbench.planning.options import results_option
from quantbench.results.runs import Runs
from quantbench.tables import ALL, KINDS, build

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd

    from quantbench.advice.decision import Choice

MemoryOption = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="memory available, such as 24GiB or 16GB (default: no limit)")
]
MaxKldOption = Annotated[float | None, typer.Option("--max-kld", metavar="NATS", help="largest mean KL divergence")]
MinTpsOption = Annotated[float | None, typer.Option("--min-tps", metavar="TPS", help="lowest decode speed, tokens/s")]
ResultsOption = Annotated[str, typer.Option("--results", metavar="PATH", help="folder or URI of the parquet tables")]


def tables(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[TABLE]",
            help="measured, precision, gguf, methods, claims, any other table, or all (default: the decision and its rows)",
            show_default=False,
            autocompletion=completion("table"),
        ),
    ] = None,
    results: ResultsOption = "results",
    run_id: Annotated[str | None, typer.Option("--run", metavar="ID", help="a run's id (default: the latest run)")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="every row beside the decision, not only ten")] = False,
    output: Annotated[Literal["text", "md", "csv", "json"], typer.Option("--format", help="output format")] = "text",
) -> None:
    """Say what to ship and show its rows, or one table."""
    if kind is None:
        _short(_rows_if_any(ALL, results, run_id), results, output, everything=everything)
        return
    if everything:
        raise UsageError(f"--all goes without a table's name; quantbench tables {kind} shows every row anyway")
    from quantbench.tables.render import render

    rows = _rows_if_any(kind, results, run_id)
    made = build(kind, rows)
    if not made:
        if rows is not None:
            message(f"run {rows['run_id'].iloc[0]} has no rows for table {kind!r}; quantbench run measures some")
        raise typer.Exit(INSUFFICIENT)
    typer.echo(render(made, output).rstrip("\n"))


def _short(rows: pd.DataFrame | None, results: str, output: str, *, everything: bool) -> None:
    """The decision and its rows, then the names of the tables; as CSV and JSON every row, and nothing else."""
    from quantbench.tables.render import render

    if rows is not None and output in ("csv", "json"):
        typer.echo(render(build("measured", rows), output).rstrip("\n"))
    elif rows is not None and output == "md":
        from quantbench.tables.summary import short_markdown

        typer.echo(short_markdown(rows, results, everything=everything))
    elif rows is not None:
        from quantbench.tables.summary import short_text

        typer.echo("\n".join(short_text(rows, results, everything=everything)))
    if output == "text":
        print_table(("TABLE", "what quantbench tables TABLE prints"), _catalogue())
    if rows is None:
        raise typer.Exit(INSUFFICIENT)


def _catalogue() -> list[tuple[str, str]]:
    kinds = sorted(KINDS, key=lambda kind: kind.place)
    return [*((kind.name, kind.about) for kind in kinds), (ALL, "all of these")]


def recommend(
    *,
    memory: MemoryOption = None,
    why: Annotated[bool, typer.Option("--why", help="why not the others, a line each")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="this model; planned if not measured", autocompletion=completion("model")
        ),
    ] = None,
    context: ContextOption = None,
    batch: BatchOption = 1,
    max_kld: MaxKldOption = None,
    min_tps: MinTpsOption = None,
    results: ResultsOption = "results",
    output: FormatOption = "text",
) -> None:
    """Say which variant to ship, measured or planned."""
    limits = {"max_kld": limit("--max-kld", max_kld), "min_tps": limit("--min-tps", min_tps)}
    memory_bytes = None if memory is None else parse_bytes(memory)
    rows = _measured_of(results, model)
    if rows is None:
        if memory_bytes is None:
            raise UsageError(f"model {model!r} was not measured; give the --memory that a plan is to fit, such as 24GiB")
        _suggest(str(model), memory_bytes=memory_bytes, limits=limits, context=context, batch=batch, output=output)
        return
    from quantbench.advice.decision import decide
    from quantbench.advice.headline import headline

    if context is not None or batch != 1:
        raise UsageError("--context and --batch are for planning only, and this was measured; omit them or name a --model")
    choices = decide(rows, memory_bytes=memory_bytes, **limits)
    if not choices:
        message("the last run answered no prompts, and a pick needs decode speed and KLD; run one with prompts such as mixed")
        raise typer.Exit(INSUFFICIENT)
    if output == "json":
        print_json([{"sentence": headline(choice), "measured": True, **asdict(choice)} for choice in choices])
    else:
        _say(choices, options=results_option(results), why=why)
    if not any(choice.pick for choice in choices):
        raise typer.Exit(INSUFFICIENT)


def _say(choices: Sequence[Choice], *, options: str, why: bool) -> None:
    """The decisions; of which model each is, where there are several; ``why`` adds a line for each other variant."""
    from quantbench.advice.decision import RULE
    from quantbench.advice.headline import context, figures, headline, others

    for index, choice in enumerate(choices):
        if len(choices) > 1:
            typer.echo("\n" * bool(index) + f"{one_line(choice.model)}, prompts {one_line(choice.prompts)}")
        for text in filter(None, (headline(choice), context(choice, counted=not why, options=options))):
            typer.echo(paragraph(text))
        if why:
            typer.echo()
            reasons = [(one_line(other.name), *figures(other.candidate), other.reason) for other in others(choice)]
            print_table(("Variant", "Weights", "tok/s", "KLD, nats", "Why not"), reasons)
            typer.echo(f"\n{paragraph(RULE)}")


def _measured_of(results: str, model: str | None) -> pd.DataFrame | None:
    """Rows of the latest run, or of the latest one that measured ``model``; None where that model was never measured."""
    if model is None:
        return rows_of_run(results, None, hint="or name a --model, to plan it before anything is measured")
    with warnings_as_messages(), suppress(StoreError):
        runs = Runs(results)
        for frame in runs.latest_first(("run_id", "model", "status")):
            if ((frame["model"] == model) & (frame["status"] == "ok")).any():
                rows = runs.of([frame["run_id"].iloc[0]])
                of_model: pd.DataFrame = rows[rows["model"] == model]
                return of_model
    return None


def _suggest(
    model: str, *, memory_bytes: int, limits: Mapping[str, float | None], context: int | None, batch: int, output: str
) -> None:
    """The answer from planned bytes and published quality; exit code 4 where nothing fits."""
    from quantbench.advice.suggest import suggest

    if limits["min_tps"] is not None:
        raise UsageError(f"model {model!r} was not measured, and speed cannot be planned; omit --min-tps, or measure it first")
    planned, workload = planned_for(model, context=context, batch=batch)
    found = suggest(planned, memory_bytes=memory_bytes, workload=workload, max_kld=limits["max_kld"])
    if output == "json":
        print_json([{"sentence": found.sentence, "measured": False, **asdict(found)}])
    else:
        typer.echo(paragraph(found.sentence))
    if found.pick is None:
        raise typer.Exit(INSUFFICIENT)


@contextmanager
def reading(hint: str = "") -> Iterator[None]:
    """Results are read inside: warnings become messages, and what is not there one that ends in ``hint``, and exit code 4."""
    try:
        with warnings_as_messages():
            yield
    except StoreError as error:
        message("; ".join(filter(None, (str(error), hint))))
        raise typer.Exit(INSUFFICIENT) from None


def rows_of_run(results: str, run_id: str | None, *, hint: str = "") -> pd.DataFrame:
    """The rows of one run, the latest unless ``run_id`` is given; where there are none, a message and exit code 4."""
    with reading(hint):
        runs = Runs(results)
        if run_id is None:
            return runs.latest()
        require_run(runs, run_id)
        return runs.of([run_id])


def require_run(runs: Runs, run_id: str) -> None:
    """UsageError with the nearest ids where there is no such run."""
    if run_id not in runs:
        raise unknown_name("run", run_id, runs.ids)


def read(results: str, table: str, run: str) -> tuple[pd.DataFrame | None, str]:
    """The rows that one run has in a stored table; otherwise None and the reason."""
    from quantbench.results.store import load

    with warnings_as_messages():
        try:
            return load(results, table, run=run), ""
        except StoreError as error:
            return None, str(error)


def _rows_if_any(kind: str, results: str, run_id: str | None) -> pd.DataFrame | None:
    """The rows of one run, the latest unless ``run_id`` is given; None, and a message, where nothing was measured."""
    if kind != ALL and KINDS[kind].build is None:
        return None
    if run_id is not None:
        return rows_of_run(results, run_id)
    with warnings_as_messages():
        try:
            return Runs(results).latest()
        except StoreError as error:
            reason = str(error)
    message(reason)
    return None


def limit(name: str, value: float | None) -> float | None:
    """A limit as it was given; UsageError for what is none."""
    if value is not None and not value >= 0:  # written so that nan is refused as well
        raise UsageError(f"{name} {value:g} is not a limit; give a number of at least 0")
    return value
