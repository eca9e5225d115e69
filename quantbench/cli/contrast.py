"""``quantbench contrast``: two variants' answers to the same prompts, and whether their distances from the reference differ."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from quantbench.cli.guard import INSUFFICIENT
from quantbench.cli.output import message, print_json
from quantbench.cli.results import ResultsOption, read, reading, require_run
from quantbench.core.errors import StoreError, UsageError, unknown_name
from quantbench.core.record import Output
from quantbench.core.scenario import Variant, reads, short_name
from quantbench.judge.contrast import About, Contrast
from quantbench.judge.contrast import contrast as contrasted
from quantbench.methods import METHODS
from quantbench.planning.matrix import default_matrix
from quantbench.planning.prompts import check_name, parse
from quantbench.planning.usual_prompts import usual_prompts
from quantbench.results.rows import Row, rows_of
from quantbench.results.runs import Runs

if TYPE_CHECKING:
    import pandas as pd

_CONTROL = "-control"
_FACTS = [
    "run_id", "started_at", "scenario_id", "repeat", "model", "method", "precision", "artifact", "control", "prompts", "status",
    "reason", "reference", "instrument_check", "null_reasons",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The request on the command line; None means any."""

    variants: tuple[Variant, Variant]
    results: str
    prompts: str | None
    run_id: str | None
    model: str | None

    def command(self, models: Sequence[str]) -> str:
        """The command line that measures both variants; ``models`` are those that it may mean, as first named."""
        default = default_matrix()
        model = models[0] if len(models) == 1 else self.model or default.models[0]
        made = [each for each in self.variants if not each.artifact]
        options = {
            "--model": model,
            "--method": ",".join(dict.fromkeys(each.method for each in made)),
            "--precision": ",".join(dict.fromkeys(each.precision for each in made)),
            "--artifact": ",".join(f"{each.artifact}=WHERE" for each in self.variants if each.artifact),
            "--prompts": self.prompts or usual_prompts(model),
            "--results": self.results,
        }
        usual = {"--model": default.models[0], "--results": "results", "--method": "", "--precision": "", "--artifact": ""}
        given = [word for name, value in options.items() if value != usual.get(name) for word in (name, value)]
        return shlex.join(["quantbench", "run", *given])

    def holds(self, row: Row) -> bool:
        """Whether a row belongs to the model and the prompt set requested."""
        models = None, row.text("model"), short_name(row.text("model"))
        return self.model in models and self.prompts in (None, row.text("prompts"), row.prompts)


def contrast(
    first: Annotated[str, typer.Argument(metavar="VARIANT", help="METHOD-PRECISION, such as gguf-q4_k_m, or an artifact")],
    second: Annotated[str, typer.Argument(metavar="VARIANT", help="the variant to compare it with, such as gguf-q8_0")],
    *,
    prompts: Annotated[str | None, typer.Option("--prompts", metavar="NAME", help="prompt set (default: all)")] = None,
    results: ResultsOption = "results",
    run_id: Annotated[str | None, typer.Option("--run", metavar="ID", help="run id (default: the last with both)")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="model (default: all)")] = None,
    output: Annotated[Literal["text", "md", "json"], typer.Option("--format", help="output format")] = "text",
) -> None:
    """Compare the answers of two variants."""
    from quantbench.cli.side_by_side import as_data, render

    variants = _variant(first, results), _variant(second, results)
    if variants[0] == variants[1]:
        raise UsageError(f"{first} and {second} are the same variant; name two, such as gguf-q4_k_m gguf-q8_0")
    if prompts is not None and reads(prompts) != "prompts":
        unanswered = f"{prompts} is scored, not answered, so there are no answers to compare"
        raise UsageError(f"{unanswered}; name a set such as 'mixed'")
    request = _Asked(variants=variants, results=results, prompts=prompts, run_id=run_id, model=model)
    found = _contrasts(request)
    if output == "json":
        print_json([as_data(each) for each in found])
    else:
        typer.echo("\n\n".join(render(each, output) for each in found))


def _variant(text: str, results: str) -> Variant:
    """The variant that a label, ``method/precision`` or the name of a stored artifact names; UsageError with the nearest."""
    known = {
        variant.label: variant
        for method in METHODS
        for variant in (Variant(method=method.name, precision=each.name) for each in method.precisions)
    }
    label = text.lower().replace("/", "-", 1)
    plain = label.removesuffix(_CONTROL)
    if plain not in known:
        artifacts = _artifacts(results)
        if text not in artifacts:
            raise unknown_name("variant", text, [*known, *artifacts])
        return Variant(method="", precision="", artifact=text)
    return replace(known[plain], control=label != plain)


def _artifacts(results: str) -> set[str]:
    """The names of all artifacts that were measured; none where nothing was."""
    try:
        frames = list(Runs(results).latest_first(["run_id", "started_at", "artifact"]))
    except StoreError:
        return set()
    return {name for frame in frames for name in frame["artifact"].dropna()}


def _contrasts(request: _Asked) -> list[Contrast]:
    """The contrast of every model and prompt set that the chosen run has of both; else a message and exit code 4."""
    with reading():
        rows, pairs = _searched(request)
    if not pairs:
        if request.prompts is not None and not rows:
            check_name(parse(request.prompts)[0])
        message(_unmeasured(request, rows))
        raise typer.Exit(INSUFFICIENT)
    outputs, _ = read(request.results, "outputs", pairs[0][0].text("run_id"))
    return [_contrast(*pair, outputs) for pair in pairs]


def _searched(request: _Asked) -> tuple[list[Row], list[tuple[Row, Row]]]:
    """Rows of the requested model and prompt set, and the pairs of both variants among them.

    Those of the run that is named, or else of the latest with a pair; where no run has one, the rows of all runs.
    """
    runs = Runs(request.results)
    if request.run_id is not None:
        require_run(runs, request.run_id)
    chosen = runs.latest_first(_FACTS) if request.run_id is None else iter([runs.of([request.run_id], _FACTS)])
    rows: list[Row] = []
    for frame in chosen:
        of_run = [row for row in rows_of(frame) if request.holds(row)]
        if pairs := _measured(request, of_run):
            return of_run, pairs
        rows += of_run
    return rows, []


def _measured(request: _Asked, rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The rows of both variants in one run, a pair per model and prompt set that measured both; first repeats only."""
    groups: dict[tuple[str, str], dict[Variant, Row]] = {}
    for row in sorted(rows, key=lambda row: row.number("repeat") or 0):
        if row.ok and reads(row.text("prompts")) == "prompts":
            groups.setdefault((row.text("model"), row.text("prompts")), {}).setdefault(_variant_of(row), row)
    first, second = request.variants
    return [(group[first], group[second]) for group in groups.values() if first in group and second in group]


def _unmeasured(request: _Asked, rows: Sequence[Row]) -> str:
    """Which of the two was not measured, and where; then the command that measures both."""
    answered = [row for row in rows if reads(row.text("prompts")) == "prompts"]
    missing = [each for each in request.variants if not any(row.ok and _variant_of(row) == each for row in answered)]
    named = " and ".join(_name(each) + _failure(each, answered) for each in missing or request.variants)
    what = "is not measured" if len(missing) == 1 else "are not measured" if missing else "were not measured in one run"
    where = [f"on prompts {request.prompts}"] if request.prompts else []
    where += [f"for {request.model}"] if request.model else []
    where += [f"in run {request.run_id}"] if request.run_id else []
    scored = "; a text is scored, not answered" if rows and not answered else ""
    command = request.command(list(dict.fromkeys(row.text("model") for row in rows if reads(row.text("prompts")) != "inputs")))
    return f"{named} {' '.join([what, *where])} under {request.results!r}{scored}; to measure both: {command}"


def _failure(variant: Variant, rows: Sequence[Row]) -> str:
    """How the variant's last failed row ended, in brackets; empty where none failed."""
    failed = [row for row in rows if _variant_of(row) == variant and not row.ok]
    if not failed:
        return ""
    last = max(failed, key=lambda row: row.values["started_at"])
    return f" ({last.text('status')}: {last.text('reason')})"


def _contrast(first: Row, second: Row, outputs: pd.DataFrame | None) -> Contrast:
    about = About(
        first=first.label,
        second=second.label,
        reference=first.text("reference"),
        model=short_name(first.text("model")),
        prompts=first.prompts,
        run_id=first.text("run_id"),
        instrument_check=first.flag("instrument_check"),
        unscored=_unscored(first, second),
    )
    return contrasted(_outputs(first, outputs), _outputs(second, outputs), about)


def _outputs(row: Row, outputs: pd.DataFrame | None) -> list[Output]:
    """The row's answers, of those of its run; where none were kept, a message and exit code 4."""
    found: list[Row] = []
    if outputs is not None:
        same = [outputs[name] == row.values[name] for name in ("scenario_id", "repeat")]
        found = rows_of(outputs.loc[same[0] & same[1], [each.name for each in fields(Output)]])
    if not found:
        reason = row.null_reason("exact_match") or "the rows of table 'outputs' are gone"
        message(
            f"run {row.text('run_id')} kept no answers from {row.label} to prompts {row.prompts} ({reason}); "
            "measure again with a --reference that can open the model"
        )
        raise typer.Exit(INSUFFICIENT)
    return [Output(**{name: _plain(value) for name, value in each.values.items()}) for each in found]


def _plain(value: Any) -> Any:
    """A list column's value as a tuple, any other value unchanged."""
    return tuple(value.tolist()) if hasattr(value, "tolist") else value


def _unscored(first: Row, second: Row) -> str:
    """Why there is no KLD; read only where there is none."""
    reasons = {row.label: row.null_reason("kld_mean") for row in (first, second)}
    found = [f"{label}: {reason}" for label, reason in reasons.items() if reason]
    return " and ".join(found) or f"run {first.text('run_id')} kept none for each prompt, so measure again"


def _variant_of(row: Row) -> Variant:
    if name := row.text("artifact"):
        return Variant(method="", precision="", artifact=name)
    return Variant(method=row.text("method"), precision=row.text("precision"), control=row.flag("control"))


def _name(variant: Variant) -> str:
    return variant.name + (" (control)" if variant.control else "")
