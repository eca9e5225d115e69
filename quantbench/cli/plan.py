"""``quantbench plan``: what each variant of a model will take, before anything is downloaded or measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from quantbench.cli.complete import completion
from quantbench.cli.output import paragraph, print_json
from quantbench.core.machine import gpu_memory, memory_limit
from quantbench.core.text import escape_markdown
from quantbench.core.units import format_bytes, format_limit, parse_bytes
from quantbench.planning.matrix import every_variant
from quantbench.planning.options import OPTIONS, convert

if TYPE_CHECKING:  # this module is imported for every command's help: what only planning takes is imported when it plans
    from quantbench.planning.planner import Device, Planned, Workload

_LISTS = [option for option in OPTIONS if option.name in ("method", "precision")]

ContextOption = Annotated[
    int | None,
    typer.Option("--context", metavar="TOKENS", help="tokens per sequence (default: 4096, or the model's own limit if less)"),
]
BatchOption = Annotated[int, typer.Option("--batch", metavar="N", help="sequences decoded at once")]

MethodsOption = Annotated[
    list[str] | None, typer.Option("--method", metavar="METHOD", help="only these methods", autocompletion=completion("method"))
]
PrecisionsOption = Annotated[
    list[str] | None,
    typer.Option("--precision", metavar="PRECISION", help="only these precisions", autocompletion=completion("precision")),
]


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="built-in name, config.json, folder, .gguf file or hub id",
            autocompletion=completion("plannable"),
        ),
    ],
    *,
    fit: Annotated[
        str | None, typer.Option("--fit", metavar="SIZE", help="memory to fit, such as 24GiB (default: this machine's)")
    ] = None,
    context: ContextOption = None,
    batch: BatchOption = 1,
    kv_dtype: Annotated[
        str, typer.Option("--kv-dtype", metavar="DTYPE", help="fp32, fp16, bf16, fp8, q8_0 or q4_0 (default: the method's own)")
    ] = "",
    method: MethodsOption = None,
    precision: PrecisionsOption = None,
    output: Annotated[Literal["table", "md", "csv", "json"], typer.Option("--format", help="output format")] = "table",
) -> None:
    """Predict sizes and what fits; needs no weights."""
    from quantbench.planning import planner
    from quantbench.planning.settled import settled
    from quantbench.runtimes import reader_of
    from quantbench.tables.plan import plan_table
    from quantbench.tables.render import render

    asked = parse_bytes(fit) if fit is not None else None
    devices = _here() if asked is None else [planner.Device(name=format_limit(asked), memory_bytes=asked)]
    variants = every_variant(*(convert(option, given) for option, given in zip(_LISTS, (method, precision), strict=True)))
    if reader_of(Path(model)) and not (method or precision) and (found := settled(model)):
        variants = [each for each in variants if found.offers(each)]
        if not found.is_source:
            typer.echo(f"quantbench: {found.sentence}", err=True)
    architecture = planner.read_architecture(model)
    if not (method or precision):
        variants = [*planner.published(architecture), *variants]
    workload = planner.workload(architecture, context=context, batch=batch, kv_dtype=kv_dtype)
    planned = planner.plan(architecture, variants, workload, devices)
    if output == "json":
        print_json([asdict(each) for each in planned])
        return
    table = render([plan_table(architecture, planned, workload, devices)], "text" if output == "table" else output)
    opening = "" if output == "csv" else _opening(planned, workload, devices, output) + "\n\n"
    typer.echo(opening + table.rstrip("\n"))


def planned_for(model: str, *, context: int | None, batch: int) -> tuple[Sequence[Planned], Workload]:
    """Every variant of a model, planned without a memory limit."""
    from quantbench.planning import planner

    architecture = planner.read_architecture(model)
    workload = planner.workload(architecture, context=context, batch=batch)
    return planner.plan(architecture, [*planner.published(architecture), *every_variant((), ())], workload, ()), workload


def _here() -> list[Device]:
    """This machine's memory and that of its GPUs; equal GPUs are listed once."""
    from quantbench.planning.planner import Device

    gpus = dict.fromkeys((name, count) for name, count in gpu_memory() if count is not None)
    names = [name for name, _ in gpus]
    labels = {(name, count): name if names.count(name) == 1 else f"{name} {format_bytes(count)}" for name, count in gpus}
    found = [Device(name=name, memory_bytes=count) for (_, count), name in labels.items()]
    return [Device(name="this machine", memory_bytes=memory_limit()), *found]


def _opening(planned: Sequence[Planned], workload: Workload, devices: Sequence[Device], output: str) -> str:
    """The decision in one sentence, for the device with the most memory."""
    from quantbench.advice.suggest import suggest

    room = max(device.memory_bytes for device in devices)
    sentence = suggest(planned, memory_bytes=room, workload=workload).sentence
    return escape_markdown(sentence) if output == "md" else paragraph(sentence)
