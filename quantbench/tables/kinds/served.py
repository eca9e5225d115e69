"""What only a server has: many requests at once, its likeliest tokens and its own timings, beside one request at a time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from quantbench.core.units import significant
from quantbench.methods import METHODS
from quantbench.results.rows import Group, Row, groups
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble, instrument_note
from quantbench.tables.lines import Line, plain_lines
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:
    import pandas as pd

    from quantbench.tables.table import Table

_NOTES = (
    "alone: one request at a time; together: several at once, tokens/s of all answers, TTFT including the queue",
    "by requests at once: tokens/s of all answers at each level up to that number",
    "chrF: the answers against the reference's, 100 where equal; top-1: share of positions with the same likeliest token",
    "own timings: as counted and timed by the server itself",
)


def table(frame: pd.DataFrame) -> list[Table]:
    """One table per run, model and prompt set of ``frame`` in which a server was measured."""
    return [made for group in groups(frame) if group.reads == "prompts" and (made := _table(group))]


def _table(group: Group) -> Table | None:
    lines = [line for line in plain_lines(group) if line.row and _is_served(line.row.text("method"))]
    if not lines:
        return None
    fields = [
        f.Field(Heading(key="variant", title="Variant"), lambda line: Cell(line.label)),
        f.measured("decode_tps", "Alone, tokens/s", significant),
        f.measured("ttft_s", "TTFT alone"),
        f.measured("concurrency"),
        f.measured("concurrent_tps"),
        f.measured("concurrent_ttft_s"),
        f.Field(Heading(key="concurrency_tps", title="By requests at once", source="measured"), _levels),
        f.measured("chrf"),
        f.measured("top1_served"),
        f.measured("topk_logprob_error"),
        f.measured("native_decode_tps"),
        *f.background("exact_match", "top_logprob_positions", "topk_overlap", "native_prefill_tps"),
        *f.status(shown=True),
    ]
    return assemble("served", "Served", lines, fields, [*_NOTES, *instrument_note(group)])


def _is_served(method: str) -> bool:
    return method in METHODS and METHODS[method].endpoint


def rates(row: Row) -> dict[int, float]:
    """Tokens/s of all answers by requests at once, the fewest first; empty where none were measured."""
    try:
        found = {int(level): float(rate) for level, rate in json.loads(row.text("concurrency_tps") or "{}").items()}
    except (ValueError, TypeError, AttributeError):
        return {}
    return dict(sorted(found.items()))


def _levels(line: Line) -> Cell:
    """``1: 64, 4: 128``; the raw value is the stored JSON."""
    found = rates(line.row) if line.row else {}
    if line.row is None or not found:
        return Cell(None)
    return Cell(line.row.text("concurrency_tps"), ", ".join(f"{level}: {significant(rate)}" for level, rate in found.items()))


SERVED = TableKind(
    name="served", about="servers: tokens/s alone and with many requests at once, chrF and likeliest tokens", place=68,
    build=table,
)  # fmt: skip
