"""What only a server has: many requests at once, its likeliest tokens and its own timings, beside one request at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from quantbench.core.units import significant, times
from quantbench.methods import METHODS
from quantbench.results.rows import Group, Row
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble, instrument_note
from quantbench.tables.lines import Line, plain_lines
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:

    from quantbench.tables.table import Table

_NOTES = (
    "alone: one request at a time; together: several at once, tokens/s of all answers, TTFT including the queue",
    "by requests at once: tokens/s of all answers at each level up to that number",
    "chrF: the answers against the reference's, 100 where equal; top-1: share of positions with the same likeliest token",
    "own timings: as counted and timed by the server itself",
    "here: the same file opened by llama.cpp in a process of this run, without a server",
)
_CONDITIONS = {"device": "device", "threads": "threads", "output_tokens": "tokens of an answer"}
"""What must be equal before two speeds are divided."""


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per run, model and prompt set in which a server was measured."""
    return [made for group in groups if group.reads == "prompts" and (made := _table(group))]


def _table(group: Group) -> Table | None:
    lines = [line for line in plain_lines(group) if line.row and _is_served(line.row.text("method"))]
    if not lines:
        return None
    fields = [
        f.Field(Heading(key="variant", title="Variant"), lambda line: Cell(line.label)),
        f.measured("decode_tps", "Alone, tokens/s", significant),
        f.Field(replace(f.metric_heading("decode_tps", "Here, tokens/s"), key="local_decode_tps"), _here),
        f.Field(Heading(key="local_ratio", title="Alone, x here", unit="ratio", source="measured", numeric=True), _over_here),
        f.measured("tpot_difference_s"),
        f.measured("ttft_s", "TTFT alone"),
        f.measured("concurrency"),
        f.measured("concurrent_tps"),
        f.measured("concurrent_ttft_s"),
        f.Field(Heading(key="concurrency_tps", title="By requests at once", source="measured"), _levels),
        f.measured("saturation_concurrency"),
        f.measured("chrf"),
        f.measured("top1_served"),
        f.measured("topk_kld"),
        f.measured("native_decode_tps"),
        f.measured("server_pss_bytes"),
        *f.background(
            "exact_match", "top_logprob_positions", "topk_overlap", "topk_logprob_error", "topk_tail", "native_prefill_tps",
            "server_device_bytes",
        ),
        *f.status(shown=True),
    ]  # fmt: skip
    return assemble("served", "Served", lines, fields, [*_NOTES, *_doubts(lines), *instrument_note(group)])


def _local(line: Line) -> Row | None:
    """The row of this run that opened the served file without a server."""
    served = line.row.facts.get("served_model") if line.row and line.row.ok else None
    return next((row for row in line.group.rows if row.ok and row.variant == served and not row.flag("control")), None)


def _doubt(line: Line, local: Row) -> str:
    """Why the two speeds are not divided; empty where they are."""
    served = line.row
    assert served is not None
    for name, words in _CONDITIONS.items():
        if served.text(name) != local.text(name):
            return f"{words} {served.text(name) or 'unknown'} and {local.text(name) or 'unknown'}"
    if flags := served.facts.get("server_flags"):
        return f"the server was started with {flags}"
    return "one of them was timed beside other work" if served.flag("disturbed") or local.flag("disturbed") else ""


def _doubts(lines: list[Line]) -> list[str]:
    found = [(line, local, _doubt(line, local)) for line in lines if (local := _local(line))]
    return [f"{line.label} is not divided by {local.variant}: {doubt}" for line, local, doubt in found if doubt]


def _here(line: Line) -> Cell:
    local = _local(line)
    return Cell.of(local.number("decode_tps"), significant) if local else Cell(None)


def _over_here(line: Line) -> Cell:
    local, mine = _local(line), line.number("decode_tps")
    theirs = local.number("decode_tps") if local else None
    return Cell.of(mine / theirs, times) if local and mine and theirs and not _doubt(line, local) else Cell(None)


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
