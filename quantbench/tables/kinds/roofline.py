"""The roofline table: how much of the memory bandwidth decoding uses, and the energy per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantbench.core.units import GB, significant
from quantbench.results.rows import Group
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble
from quantbench.tables.lines import Line, plain_lines
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quantbench.tables.table import Table

_FIGURES = ("mbu", "energy_per_token_j")
_NOTES = (
    "MBU: bytes per token x decode rate over the bandwidth, which is that of a copy, counting bytes read and written",
    "MBU above 1: a CPU's caches hold the model, or memory is read faster than copied; GB = 10^9 bytes",
    "J/token: the whole GPU board or all CPU packages, prompt passes included, idle power not subtracted",
)


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per run, model and prompt set that has such a figure."""
    return [made for group in groups if (made := _table(group))]


def _table(group: Group) -> Table | None:
    if all(row.number(name) is None for row in group.rows for name in _FIGURES):
        return None
    lines = plain_lines(group)
    fields = [
        f.Field(Heading(key="variant", title="Variant"), lambda line: Cell(line.label)),
        f.measured("bytes_per_token"),
        f.measured("decode_tps", show=significant),
        f.measured("memory_bandwidth_bps", "Bandwidth", lambda value: f"{significant(value / GB)} GB/s"),
        f.measured("mbu"),
        f.measured("energy_per_token_j"),
        f.Field(Heading(key="kernel", title="Kernel", source="measured"), _text("kernel")),
        f.Field(Heading(key="device_found", title="Device", source="measured"), _text("device_found")),
        *f.background("energy_window_s"),
        f.Field(Heading(key="energy_source", title="Energy counter", shown=False), _text("energy_source")),
        *f.status(shown=any(line.status != "ok" for line in lines)),
    ]
    return assemble("roofline", "Memory roofline and energy", lines, fields, _NOTES)


def _text(name: str) -> Callable[[Line], Cell]:
    return lambda line: Cell((line.row.text(name) if line.row else "") or None)


ROOFLINE = TableKind(
    name="roofline", about="bytes read per token, share of the memory bandwidth, energy per token, device found", place=65,
    build=table,
)  # fmt: skip
