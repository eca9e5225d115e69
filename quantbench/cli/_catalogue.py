"""``quantbench methods``, ``metrics`` and ``models``: what there is to choose from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from quantbench.cli._output import Format, print_json, print_table
from quantbench.methods import METHODS, Method

FormatOption = Annotated[Format, typer.Option("--format", help="how to print it")]

_MODEL_FORMS = (
    ("NAME", "a built-in model"),
    ("FOLDER", "a checkpoint folder with config.json and safetensors, as save_pretrained writes it"),
    ("FILE.gguf", "a GGUF file"),
    ("ORG/NAME[@REVISION]", "a checkpoint on the Hugging Face hub, at a branch, tag or commit"),
    ("ORG/NAME[@REVISION]:Q4_K_M", "one GGUF file of a hub repository, all its parts"),
    ("http://HOST[:PORT]/v1[#MODEL]", "an OpenAI-compatible server, for the method server"),
)


def method_facts(method: Method) -> dict[str, Any]:
    """What there is to know of a method without importing what it needs."""
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
    """List methods, precisions and missing packages."""
    facts = [method_facts(method) for method in METHODS]
    if output == "json":
        return print_json(facts)
    rows = [
        [
            each["method"],
            " ".join(precision["precision"] for precision in each["precisions"]),
            each["anchor"],
            each["install"] or "yes",
            each["about"],
        ]
        for each in facts
    ]
    return print_table(["method", "precisions", "anchor", "installed", "about"], rows)


def metrics(output: FormatOption = "text") -> None:
    """List what is measured: columns, units, directions."""
    from quantbench.metrics import METRICS

    facts = [
        {"column": column.name, "unit": column.unit, "better": column.better, "metric": metric.name, "doc": column.doc}
        for metric in METRICS
        for column in metric.columns
    ]
    if output == "json":
        return print_json(facts)
    return print_table(list(facts[0]), [[value or "" for value in each.values()] for each in facts])


def models(output: FormatOption = "text") -> None:
    """List the built-in models and other ways to name one."""
    from quantbench.models import MODELS

    built_in = [
        {"model": model.name, "about": model.about, "instrument_check": model.instrument_check, "folder": str(model.folder())}
        for model in MODELS
    ]
    forms = [{"form": form, "meaning": meaning} for form, meaning in _MODEL_FORMS]
    if output == "json":
        return print_json({"built_in": built_in, "forms": forms})
    print_table(["model", "about"], [[model.name, model.about] for model in MODELS])
    typer.echo()
    return print_table(["--model takes", ""], _MODEL_FORMS)
