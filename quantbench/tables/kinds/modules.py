"""Dynamic quantization as the tutorial shows it: the state dict in KB and its reduction, then speed and output similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from quantbench.core.units import format_seconds, times, with_interval
from quantbench.results.rows import Group
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble
from quantbench.tables.lines import Line, plain_lines
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:

    from quantbench.tables.table import Table

_METHOD = "torch-dynamic"
_KB = 1024
"""The tutorial's KB."""
_NOTES = (
    "state dict: the bytes that torch.save writes for it (KB = 1024 bytes); the file is never loaded",
    "reduction: size of the reference's state dict over the variant's",
)
_CALL_NOTES = (
    "call: median time of one call on a seeded input, MAD its median absolute deviation x 1.4826",
    "cosine and largest error: all outputs on the same seeded inputs, compared with the reference's",
)


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per run and module, and per language model on which the method was measured."""
    return [made for group in groups if group.reads != "text" and (made := _table(group))]


def calls(reference: str) -> list[f.Field]:
    """Call time with its spread, speed over the reference's, and the distance of the outputs."""
    speed = Heading(key="call_speed_ratio", title=f"Speed, x {reference}", unit="ratio", source="measured", numeric=True)
    return [
        f.Field(f.metric_heading("call_s"), _call),
        f.Field(speed, _speed),
        f.measured("output_cosine"),
        f.measured("output_max_abs_error"),
        *f.background("call_mad_s", "call_p90_s", "call_ratio", "call_ratio_low", "call_ratio_high"),
    ]


def _table(group: Group) -> Table | None:
    lines = _language_model_lines(group) if group.reads != "inputs" else plain_lines(group)
    if not lines:
        return None
    reduction = Heading(key="state_dict_reduction", title="Reduction", unit="ratio", source="measured", numeric=True)
    fields = [
        f.Field(Heading(key="variant", title="Variant"), lambda line: Cell(line.label)),
        f.measured("state_dict_bytes", "State dict, KB", lambda count: f"{count / _KB:.2f}"),
        f.Field(reduction, _reduction),
        *(_answers(group.reference) if group.reads != "inputs" else calls(group.reference)),
        *f.status(shown=any(line.status != "ok" for line in lines)),
    ]
    check = f"{group.model} is an instrument check: its figures show that it works, and say nothing about a real model"
    notes = [*_NOTES, *(() if group.reads != "inputs" else _CALL_NOTES), *([check] if group.instrument_check else [])]
    return assemble("modules", "Dynamic quantization", lines, fields, notes)


def _language_model_lines(group: Group) -> Sequence[Line]:
    """The reference and the method's rows; empty unless both were planned and the reference's state dict is known."""
    reference = group.reference_row
    known = reference is not None and reference.number("state_dict_bytes") is not None
    lines = [line for line in plain_lines(group) if line.row and (line.row is reference or line.row.text("method") == _METHOD)]
    return lines if known and len(lines) > 1 else ()


def _answers(reference: str) -> list[f.Field]:
    return [*f.speed(reference), *f.divergence(), f.measured("top1_agreement")]


def _reduction(line: Line) -> Cell:
    ratio = line.over_reference("state_dict_bytes")
    return Cell(1 / ratio, f"{times(1 / ratio)}x smaller" if ratio < 1 else f"{times(1 / ratio)}x") if ratio else Cell(None)


def _call(line: Line) -> Cell:
    median, mad = line.number("call_s"), line.number("call_mad_s")
    spread = "" if mad is None else f" (MAD {format_seconds(mad)})"
    return Cell.of(median, lambda known: format_seconds(known) + spread)


def _speed(line: Line) -> Cell:
    """From alternating rounds where the reference is the row's anchor, else from the two rows' own times."""
    row = line.row
    ratio = line.number("call_ratio")
    if row and ratio is not None and row.text("anchor") == row.text("reference"):
        return Cell(ratio, with_interval(ratio, line.number("call_ratio_low"), line.number("call_ratio_high"), show=times))
    longer = line.over_reference("call_s")
    return replace(Cell(1 / longer, times(1 / longer)), mark=f.BETWEEN_PROCESSES) if longer else Cell(None)


MODULES = TableKind(
    name="modules", about="dynamic quantization: state dict in KB, reduction, call time, output similarity", place=50,
    build=table,
)  # fmt: skip
