"""The plan as a table: one line per variant, with what each device can hold."""

from __future__ import annotations

from collections.abc import Sequence

from quantbench.claims.checked import size_notes
from quantbench.core.units import format_bytes, times
from quantbench.models.architecture import Architecture
from quantbench.planning.planner import Device, Planned, Workload
from quantbench.tables.table import Cell, Heading, Table

_ASSUMED = ("weight_bytes", "peak_bytes")
"""Columns that get a mark where shapes had to be assumed."""

_HIDDEN = ("method", "precision", "parameters", "context", "batch", "kv_dtype", "file_bytes", "note", "model_note")
_NAMED = 6
"""How many precisions of one method a note names; where there are more, they are counted."""


def plan_table(architecture: Architecture, planned: Sequence[Planned], workload: Workload, devices: Sequence[Device]) -> Table:
    """The plan of one architecture; bytes are decimal, a device's memory is shown as it was given."""
    headings, rows = _columns(planned, devices)
    longest = f", made for {architecture.context} tokens" if architecture.context else ""
    keys = f", keys and values in {workload.kv_dtype}" if workload.kv_dtype else ""
    sequences = f"{workload.batch} sequences of " if workload.batch > 1 else ""
    return Table(
        name="plan",
        title=f"Plan: {architecture.name}, {architecture.parameters:,} parameters",
        facts={
            "model": architecture.name,
            "parameters": architecture.parameters,
            "context": workload.context,
            "batch": workload.batch,
        },
        caption=f"Planned from shapes, nothing was measured; for {sequences}{workload.context} tokens{keys} "
        f"({architecture.model_type}{longest})",
        headings=headings,
        rows=rows,
        notes=tuple(_notes(architecture, planned, devices)),
    )  # fmt: skip


def _columns(planned: Sequence[Planned], devices: Sequence[Device]) -> tuple[tuple[Heading, ...], tuple[tuple[Cell, ...], ...]]:
    loaded = {"weight_bytes": "Weights"}
    running = {"kv_cache_bytes": "KV", "activation_bytes": "Activ.", "peak_bytes": "Peak"}
    ratios = {"compression_fp32": "fp32 ÷ it", "compression_fp16": "fp16 ÷ it"}
    headings = [
        Heading(key="variant", title="Variant"),
        *(Heading(key=key, title=title, unit="bytes", numeric=True) for key, title in loaded.items()),
        Heading(key="bits_per_weight", title="Bits/w", unit="bits", numeric=True),
        *(Heading(key=key, title=title, unit="ratio", numeric=True) for key, title in ratios.items()),
        *(Heading(key=key, title=title, unit="bytes", numeric=True) for key, title in running.items()),
        *(Heading(key=f"fits {device.name}", title=f"Fits {device.name}") for device in devices),
        Heading(key="largest_context", title="Longest", unit="tokens", numeric=True),
        *(Heading(key=key, title=key, shown=False) for key in _HIDDEN),
    ]
    rows = []
    for each in planned:
        found = {
            "variant": Cell(each.variant),
            "bits_per_weight": Cell.of(each.bits_per_weight, "{:.2f}".format),
            **{key: _bytes(getattr(each, key), about=not each.is_exact and key in _ASSUMED) for key in {**loaded, **running}},
            **{key: Cell.of(getattr(each, key), times) for key in ratios},
            **{
                f"fits {device.name}": Cell.of(each.fits_on.get(device.name), lambda fits: "yes" if fits else "no")
                for device in devices
            },
            **{key: Cell(None if getattr(each, key) == "" else getattr(each, key)) for key in ("largest_context", *_HIDDEN)},
        }
        rows.append(tuple(found[heading.key] for heading in headings))
    return tuple(headings), tuple(rows)


def _bytes(count: int | None, *, about: bool) -> Cell:
    return Cell.of(count, lambda known: f"{'~' if about else ''}{format_bytes(known)}")


def _notes(architecture: Architecture, planned: Sequence[Planned], devices: Sequence[Device]) -> list[str]:
    """What the columns mean, then each note with the variants it applies to."""
    rooms = ", ".join(f"{device.name} {format_bytes(device.memory_bytes)}" for device in devices)
    least, most = architecture.bounds
    known = (
        "weights are exact, as weight_bytes of a loaded model will say"
        if least == most
        else f"~: the shapes had to be assumed, so weights may be {1 - least:.0%} less to {most - 1:.0%} more than shown"
    )
    exact = (
        f"MB = 10^6 bytes; {known}; bits/w: of all parameters; ÷: how many times smaller; peak: weights, KV cache, and the "
        "activations of one prefill, which are an estimate"
    )
    untold = "" if least == most else ", empty where it cannot be told"
    fits = (
        f"fits: the peak is within the memory ({rooms}){untold}; longest: the context in tokens that the largest of these "
        "holds, at most what the model was made for"
    )
    of: dict[str, list[Planned]] = {}
    for each in planned:
        if each.note:
            of.setdefault(each.note, []).append(each)
    notes = [f"{_names(rows, planned)}: {note}" if len(rows) < len(planned) else note for note, rows in of.items()]
    return [exact, fits, *([architecture.note] if architecture.note else []), *notes, *size_notes(architecture.name)]


def _names(rows: Sequence[Planned], planned: Sequence[Planned]) -> str:
    """The variants: a method's name alone stands for all of its variants, and a number for many of them."""
    names = []
    for method in dict.fromkeys(each.method for each in rows):
        mine = [each.precision for each in rows if each.method == method]
        whole = len(mine) == sum(each.method == method for each in planned)
        some = f"{method} ({len(mine)} precisions)" if len(mine) > _NAMED else f"{method}/{', '.join(mine)}"
        names.append(method if whole else some)
    return "; ".join(names)
