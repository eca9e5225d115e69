"""Memory: what the weights take, what transformers reports and why that differs, and what the process held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from quantbench.core.units import format_bytes
from quantbench.metrics.memory import EQUAL
from quantbench.results.rows import Group
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble, instrument_note
from quantbench.tables.lines import Line, plain_lines
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:

    from quantbench.tables.table import Table

_SIGNS = "¹²³⁴⁵⁶⁷⁸⁹"
_MEASURED = ("peak_rss_growth_bytes", "rss_anon_bytes", "peak_device_allocated_bytes", "peak_device_used_bytes")
"""Figures of which a process has at least one where its memory was measured."""

_NOTES = (
    "weights: everything that stores them, as loaded; running: the same after answering, when kernels may have repacked them",
    "footprint: transformers' get_memory_footprint(); difference: footprint minus weights",
    "growth: the peak resident size while opening, or while answering the longest prompt, minus the resident size before",
    "library code that a method loads counts as growth; for a small model it is most of it",
    "anonymous, file: the parts of the process's resident memory at its peak, with what it held before opening the model",
    "MB = 10^6 bytes",
)


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per run, model and prompt set in which the memory of some process was measured."""
    return [made for group in groups if (made := _table(group))]


def _table(group: Group) -> Table | None:
    lines = plain_lines(group)
    if all(line.number(name) is None for line in lines for name in _MEASURED):
        return None
    signs = _signs(lines)
    fields = [
        f.Field(Heading(key="variant", title="Variant"), lambda line: Cell(line.label)),
        f.measured("weight_bytes"),
        f.measured("weight_bytes_running"),
        f.measured("footprint_bytes"),
        _difference(signs),
        f.measured("artifact_bytes"),
        f.measured("peak_rss_growth_bytes"),
        _load_growth(),
        f.measured("rss_anon_bytes"),
        f.measured("rss_file_bytes"),
        *_on_device(lines),
        _hidden("footprint_note"),
        _hidden("weight_kinds"),
        *f.background("peak_rss_bytes", "load_peak_rss_bytes", "parameters", "bits_per_weight"),
        *f.status(shown=any(line.status != "ok" for line in lines)),
    ]
    reasons = [f"{sign} {reason}" for reason, sign in signs.items()]
    return assemble("memory", "Memory", lines, fields, [*_NOTES, *reasons, *instrument_note(group)])


def _signs(lines: Sequence[Line]) -> Mapping[str, str]:
    """A sign for each reason why a footprint differs from the weights, in order of appearance."""
    reasons = dict.fromkeys(reason for line in lines if (reason := _reason(line)))
    return {reason: _SIGNS[index] if index < len(_SIGNS) else f"({index + 1})" for index, reason in enumerate(reasons)}


def _reason(line: Line) -> str:
    note = line.row.text("footprint_note") if line.row else ""
    return "" if note == EQUAL else note


def _difference(signs: Mapping[str, str]) -> f.Field:
    heading = Heading(key="footprint_difference_bytes", title="Difference", unit="bytes", source="measured", numeric=True)

    def cell(line: Line) -> Cell:
        footprint, weights = line.number("footprint_bytes"), line.number("weight_bytes")
        if footprint is None or weights is None:
            return Cell(None)
        difference = footprint - weights
        sign = "+" if difference > 0 else "-" if difference else ""
        return Cell(difference, f"{sign}{format_bytes(abs(difference))}", mark=signs.get(_reason(line), ""))

    return f.Field(heading, cell)


def _load_growth() -> f.Field:
    """The peak resident size while the model was opened, minus the resident size before."""
    heading = Heading(key="load_growth_bytes", title="Growth, opening", unit="bytes", source="measured", numeric=True)

    def cell(line: Line) -> Cell:
        peak, growth, load = (
            line.number(name) for name in ("peak_rss_bytes", "peak_rss_growth_bytes", "load_peak_rss_bytes")
        )
        if peak is None or growth is None or load is None:
            return Cell(None)
        return Cell(load - (peak - growth), format_bytes(load - (peak - growth)))

    return f.Field(heading, cell)


def _on_device(lines: Sequence[Line]) -> list[f.Field]:
    """Peaks on a device, where there are any."""
    names = {"peak_device_allocated_bytes": "On device", "peak_device_reserved_bytes": "Reserved there"}
    found = [name for name in names if any(line.number(name) is not None for line in lines)]
    return [f.measured(name, names[name], format_bytes) for name in found]


def _hidden(name: str) -> f.Field:
    """A text for CSV and JSON only."""
    heading = Heading(key=name, title=name, source="measured", shown=False)
    return f.Field(heading, lambda line: Cell((line.row.text(name) if line.row else "") or None))


MEMORY = TableKind(
    name="memory", about="weights beside transformers' footprint, and why they differ; peak memory",
    place=55, build=table,
)  # fmt: skip
