"""Where quantization pays off: decode throughput by prompt length and batch, and over the unquantized model's.

One sequence reads all weights for each token, so fewer bytes are faster. Many sequences share one read, and what remains is
arithmetic and the keys and values of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from quantbench.core.scenario import prompt_tokens
from quantbench.core.units import significant, times
from quantbench.results.rows import Group, Row
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble, instrument_note
from quantbench.tables.lines import Line, plain_lines
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:

    from quantbench.tables.table import Table

_UNQUANTIZED = ("torch/bf16", "torch/fp16")
"""What is quantized in practice; the first of these that was measured is the baseline, else the reference is."""


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per run and model measured at several lengths or batches."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        if group.reads == "prompts":
            found.setdefault((group.fact("run_id"), group.model), []).append(group)
    return [_table(sorted(sets, key=_place)) for sets in found.values() if _differ(sets)]


def _differ(sets: Sequence[Group]) -> bool:
    """Whether prompt sets differ in their batch, or in the length in their names."""
    return len({(prompt_tokens(group.rows[0].prompt_set), group.rows[0].batch) for group in sets}) > 1


def _place(group: Group) -> tuple[int, str, int]:
    row = group.rows[0]
    return prompt_tokens(row.prompt_set), row.prompt_set, row.batch


def _table(sets: Sequence[Group]) -> Table:
    rows = {group.prompts: {row.key: row for row in group.rows} for group in sets}
    first = {key: row for group in reversed(sets) for key, row in rows[group.prompts].items()}
    lines = plain_lines(Group(tuple(first[row.key] for group in sets for row in group.rows if first[row.key] is row)))
    known = (name for name in _UNQUANTIZED if any(_speed(own.get((name, False))) for own in rows.values()))
    baseline = next(known, sets[0].reference)
    fields = [
        f.Field(Heading(key="variant", title="Variant"), lambda line: Cell(line.label)),
        *f.size(sets[0].reference),
        *(_speed_field(name, rows[name], baseline) for name in rows),
    ]
    notes = (
        f"decode: tokens/s of all sequences together, and the ratio to {baseline} at the same length and batch",
        "tokens:N: a prompt of N tokens; @B: B sequences answered together",
        *(
            f"{row.label} on {name}: {row.text('status')}, {row.text('reason')}"
            for name, own in rows.items()
            for key, row in own.items()
            if not row.ok and row is not first[key]
        ),
        *instrument_note(sets[0]),
    )
    made = assemble("batches", "Where quantization pays", lines, fields, notes)
    return replace(
        made, title=f"Where quantization pays: {sets[0].model}", facts={**made.facts, "prompts": ", ".join(rows)}
    )


def _speed(row: Row | None) -> float | None:
    return row.number("decode_tps") if row else None


def _speed_field(name: str, rows: Mapping[tuple[str, bool], Row], baseline: str) -> f.Field:
    heading = Heading(key=f"decode_tps {name}", title=name, unit="tokens/s", source="measured", numeric=True)
    base = _speed(rows.get((baseline, False)))

    def cell(line: Line) -> Cell:
        speed = _speed(rows.get(line.row.key)) if line.row else None
        return Cell.of(speed, lambda known: significant(known) + (f" ({times(known / base)} x)" if base else ""))

    return f.Field(heading, cell)


BATCHES = TableKind(
    name="batches", about="decode throughput by length and batch, and over the unquantized model's", place=67, build=table
)
