"""``quantbench methods``, ``metrics`` and ``models``: list what can be chosen."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from quantbench.cli.complete import completion
from quantbench.cli.output import Format, print_json, print_table
from quantbench.core.errors import unknown_name
from quantbench.core.record import Column
from quantbench.methods import METHODS, Method
from quantbench.metrics import METRICS, Metric, all_columns

_WIDTH = 100
"""The most columns that these lists take, on a terminal and elsewhere."""

FormatOption = Annotated[Format, typer.Option("--format", help="output format")]


def method_facts(method: Method) -> dict[str, Any]:
    """What is known about a method without importing the packages it needs."""
    missing = list(method.missing())
    return {
        "method": method.name,
        "about": method.about,
        "precisions": [{"precision": each.name, "bits": each.bits, "title": each.title} for each in method.precisions],
        "anchor": method.anchor,
        "checkpoints": list(method.kinds),
        "can_save": method.saver is not None,
        "requires": list(method.requires),
        "missing": missing,
        "installed": not missing,
        "install": method.install if missing else None,
    }


def methods(output: FormatOption = "text") -> None:
    """List methods with their precisions and missing packages."""
    facts = [method_facts(method) for method in METHODS]
    if output == "json":
        return print_json(facts)
    return typer.echo("\n\n".join(map(_method_lines, facts)))


def _method_lines(facts: Mapping[str, Any]) -> str:
    """A method with what it is, its precisions, and what it still needs here."""
    lines = [
        _wrapped(f"{facts['method']}: {facts['about']}", 0),
        _wrapped(" ".join(each["precision"] for each in facts["precisions"]), 2, 2),
    ]
    if not facts["installed"]:
        lines.append(_wrapped(f"needs {', '.join(facts['missing'])}, not installed; {facts['install']}", 2, 2))
    return "\n".join(lines)


def metrics(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="only these metrics or columns", autocompletion=completion("column")),
    ] = None,
    output: FormatOption = "text",
) -> None:
    """List columns with their units, formulas and sources."""
    known = [*(each.name for each in METRICS), *(column.name for column in all_columns())]
    if unknown := [name for name in names or () if name not in known]:
        raise unknown_name("metric or column", unknown[0], known)
    chosen = [
        (each, [column for column in each.columns if not names or each.name in names or column.name in names])
        for each in METRICS
    ]
    if output == "json":
        return print_json([_column_facts(each, column) for each, columns in chosen for column in columns])
    blocks = [
        [f"{each.name}: {each.about}", *(line for column in columns for line in column_lines(column))]
        for each, columns in chosen
        if columns
    ]
    return typer.echo("\n\n".join("\n".join(block) for block in blocks))


def _column_facts(metric: Metric, column: Column) -> dict[str, Any]:
    return {
        "column": column.name, "unit": column.unit, "better": column.better, "metric": metric.name, "doc": column.doc,
        "formula": column.formula, "source": column.source,
    }  # fmt: skip


def column_lines(column: Column) -> list[str]:
    """Name, unit, direction and meaning of a column; then its formula and its source, where it has them."""
    facts = ", ".join(part for part in (column.unit, f"{column.better} is better" if column.better else "") if part)
    head = f"{column.name} ({facts}): {column.doc}" if facts else f"{column.name}: {column.doc}"
    formula = [_indented(f"= {column.formula}", 6)] if column.formula else []
    source = [_indented(f"source: {column.source}", 6)] if column.source else []
    return [_indented(head, 2), *formula, *source]


def _indented(text: str, blanks: int) -> str:
    """``text`` indented by ``blanks`` spaces: wrapped between words on a terminal, one line elsewhere."""
    return _wrapped(text, blanks) if sys.stdout.isatty() else " " * blanks + text


def _wrapped(text: str, blanks: int, further: int | None = None) -> str:
    """``text`` in lines that are indented by ``blanks`` spaces, the first, and ``further`` (default: 4 more)."""
    width = min(shutil.get_terminal_size().columns, _WIDTH) if sys.stdout.isatty() else _WIDTH
    later = blanks + 4 if further is None else further
    return textwrap.fill(
        text, width, initial_indent=" " * blanks, subsequent_indent=" " * later, break_long_words=False, break_on_hyphens=False
    )


def _model_forms() -> list[tuple[str, str]]:
    """Every way to name a model, with what it means."""
    return [
        ("NAME", "a built-in model"),
        ("FOLDER", "a checkpoint as save_pretrained writes it: config.json, safetensors"),
        ("FILE.gguf", "a GGUF file"),
        ("ORG/NAME[@REVISION]", "a checkpoint on the Hugging Face hub, at a branch, tag or commit"),
        ("ORG/NAME[@REVISION]:Q4_K_M", "one GGUF file of a hub repository, all its parts"),
        ("dummy:NAME", "random weights of a NAME below, FOLDER or ORG/NAME, for its speed"),
        ("http://HOST[:PORT]/v1[#MODEL]", "an OpenAI-compatible server, for the method server"),
    ]


def models(output: FormatOption = "text") -> None:
    """List the built-in models and the other ways to name one."""
    from quantbench.models import MODELS, dummy_configs

    built_in = [
        {"model": model.name, "about": model.about, "instrument_check": model.instrument_check, "folder": str(model.folder())}
        for model in MODELS
    ]
    forms = _model_forms()
    if output == "json":
        listed = [{"form": form, "meaning": meaning} for form, meaning in forms]
        return print_json({"built_in": built_in, "dummies": list(dummy_configs()), "forms": listed})
    names = max(len(model.name) for model in MODELS) + 2
    for name, about in (("model", "about"), *((model.name, model.about) for model in MODELS)):
        typer.echo(_wrapped(name.ljust(names) + about, 0, names))
    typer.echo()
    print_table(["--model takes", ""], forms)
    typer.echo()
    return typer.echo(_wrapped(f"NAME of a dummy, and of quantbench plan: {', '.join(dummy_configs())}", 0))
