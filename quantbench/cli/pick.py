"""``quantbench pick``: plan, drop what cannot be it, measure the rest in rounds, and say what to run and how."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from quantbench.cli.complete import completion
from quantbench.cli.guard import INSUFFICIENT
from quantbench.cli.output import counted, message
from quantbench.cli.plan import MethodsOption, PrecisionsOption
from quantbench.cli.results import MaxKldOption, MemoryOption, MinTpsOption, ResultsOption, limit
from quantbench.core.scenario import short_name
from quantbench.core.units import format_bytes, format_limit, parse_bytes

if TYPE_CHECKING:  # as in cli.plan
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

    from quantbench.advice.decision import Limits
    from quantbench.planning.lineup import Contender, Lineup
    from quantbench.planning.options import RunOptions

_Candidates = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="as for run --model, or a folder or hub repository of GGUF files",
        autocompletion=completion("model"),
    ),
]
_OriginalOption = Annotated[
    str, typer.Option("--original", metavar="MODEL", help="what GGUF files are compared with (default: the most exact of them)")
]


def pick(
    model: _Candidates,
    *,
    original: _OriginalOption = "",
    memory: MemoryOption = None,
    max_kld: MaxKldOption = None,
    min_tps: MinTpsOption = None,
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N")] = None,
    n_gpu_layers: Annotated[
        str | None, typer.Option("--n-gpu-layers", metavar="N", help="layers of a GGUF model on the GPU: a number, auto (all)")
    ] = None,
    method: MethodsOption = None,
    precision: PrecisionsOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="keep what was downloaded and not picked")] = False,
    results: ResultsOption = "results",
) -> None:
    """Find what to run, measuring only what may be it."""
    from quantbench.advice.decision import Limits, decide
    from quantbench.advice.headline import named
    from quantbench.cli.racing import Race
    from quantbench.planning.lineup import lineup
    from quantbench.results.store import load
    from quantbench.tables.summary import short_text

    limits = Limits.asked(
        memory_bytes=None if memory is None else parse_bytes(memory), max_kld=limit("--max-kld", max_kld),
        min_tps=limit("--min-tps", min_tps),
    )  # fmt: skip
    found = lineup(model, original, _options(device, n_gpu_layers, results, method or (), precision or ()))
    contenders = found.within(limits.memory_bytes)
    _say_plan(model, found, contenders, limits)
    race = Race(found, limits, _say, keep)
    race.run(contenders)
    rows = load(results, run=race.run_id)
    [choice] = decide(rows, **asdict(limits))
    typer.echo("\n".join(short_text(rows, results, limits=limits)).rstrip())
    still = (named(choice)[:1] if choice.pick else named(choice)) if not choice.nearest else []
    race.forget(each for each in found.contenders if each.name not in still)
    if choice.pick is None:
        raise typer.Exit(INSUFFICIENT)
    typer.echo("\n" + "\n".join(_commands(found, choice.pick.name, device or "cpu", _gpu_layers(rows, choice.pick.name))))


def _options(
    device: str | None, n_gpu_layers: str | None, results: str, methods: Sequence[str], precisions: Sequence[str]
) -> RunOptions:
    """Those of the first round; nothing is measured that a pick does not rest on."""
    from dataclasses import replace

    from quantbench.cli.racing import ANSWERED, FIRST
    from quantbench.planning.options import OPTIONS, RunOptions, convert

    given = {"method": methods, "precision": precisions}
    lists = {option.key: convert(option, given[option.key]) for option in OPTIONS if option.key in given}
    prompts, profile = FIRST
    usual = RunOptions.read(lambda option: option.default)
    return replace(
        usual, device=device, n_gpu_layers=n_gpu_layers, results=results, prompts=(prompts,), profile=profile,
        answered_prompts=ANSWERED, no_probes=True, no_energy=True, **lists,
    )


def _say_plan(model: str, found: Lineup, contenders: Sequence[Contender], limits: Limits) -> None:
    """How many there are, how many do not fit, and what measuring the rest takes; exit code 4 where none is left."""
    every, left = found.contenders, len(contenders)
    room = "this machine" if limits.memory_bytes is None else f"{format_limit(limits.memory_bytes)} or this machine"
    if not contenders:
        of_all = f"{counted(len(every), 'candidate')} of {short_name(model)}"
        message(f"none of {of_all} fits {room}; the smallest is {found.smallest}")
        raise typer.Exit(INSUFFICIENT)
    parts = [counted(len(every), "candidate"), *([f"{len(every) - left} too large for {room}"] if left < len(every) else [])]
    parts += [f"{left} to measure", *_fetching(found, contenders)]
    _say(f"{short_name(model)}: {', '.join(parts)}")
    if found.note:
        _say(found.note)


def _fetching(found: Lineup, contenders: Sequence[Contender]) -> list[str]:
    """How much is downloaded from a hub, and how long the first round takes, which no header tells yet."""
    from quantbench.core.scenario import PROFILES
    from quantbench.planning.options import plan
    from quantbench.running.estimate import files_s, this_machine
    from quantbench.running.progress import duration

    sizes = {each.name: each.size_bytes for each in contenders if each.size_bytes and each.parts}
    if not sizes:
        return []
    scenarios = [each for each in plan(found.options).scenarios if each.variant.name in sizes and not each.variant.control]
    machine, _ = this_machine(found.options.device or "cpu", 0)
    seconds = files_s(scenarios, sizes, PROFILES[found.options.profile], machine)
    return [f"up to {format_bytes(sum(sizes.values()))} to download", f"about {duration(seconds)} for a first round"]


def _gpu_layers(rows: pd.DataFrame, name: str) -> int | None:
    """How many layers of the pick were on the GPU where some were not."""
    from quantbench.core.protocols import N_GPU_LAYERS
    from quantbench.results.rows import rows_of

    layers = next((row.number(N_GPU_LAYERS) for row in rows_of(rows) if row.variant == name), None)
    return None if layers is None else int(layers)


def _commands(found: Lineup, name: str, device: str, gpu_layers: int | None) -> list[str]:
    """What runs the pick, the contender of that name."""
    from quantbench.advice.launch import of_file, of_variant
    from quantbench.core.scenario import Variant
    from quantbench.models.hub import download

    picked = next(each for each in found.contenders if each.name == name)
    if picked.place:
        path: Path | str = download(picked.place)[0] if picked.parts else picked.place
        return of_file(str(path), device, gpu_layers)
    method, _, precision = picked.name.partition("/")
    return of_variant(found.model, Variant(method=method, precision=precision), device, gpu_layers)


def _say(sentence: str) -> None:
    """A sentence on stderr, in lines of at most 100 columns."""
    from quantbench.advice.headline import COLUMNS
    from quantbench.tables.render import wrap

    for line in wrap(f"quantbench: {sentence.removeprefix('quantbench: ')}", COLUMNS, "  "):
        typer.echo(line, err=True)
