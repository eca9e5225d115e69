"""The precision table: FP32, FP16, INT8 and INT4 as claimed, as planned for a 7B, 13B and 70B, and as measured on one model.

Rows: FP32 and FP16 are torch, INT8 is bitsandbytes LLM.int8(), INT4 is bitsandbytes NF4 with double quantization; every other
variant outside GGUF follows without claims. The words are anchored on published 7-8B figures (see ``words``). A canary is an
instrument check: its table shows that the instrument works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantbench.advice.words import words
from quantbench.claims.checked import mark_notes
from quantbench.claims.claimed import claims
from quantbench.claims.evidence import Evidence
from quantbench.results.rows import Group
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble, claim_notes, speed_note
from quantbench.tables.lines import Line, claimed_lines, lines_of, plain_lines

if TYPE_CHECKING:

    from quantbench.tables.table import Table


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per run, language model and prompt set."""
    return [made for group in groups if group.reads == "prompts" and (made := _table(group))]


def unmeasured() -> list[Table]:
    """The claimed rows, planned."""
    return [_assemble(claimed_lines(claims()["precision"]), [])]


def _table(group: Group) -> Table | None:
    claim = claims()["precision"]
    claimed = {row.variant for row in claim.rows}
    rows = [row for row in group.rows if row.text("method") != "gguf"]
    shown = [row for row in rows if row.variant in claimed or row.number("bits_per_weight") is not None]
    lines = lines_of(group, claim, lambda row: row in shown)
    if not lines:
        return None
    others = [line for line in plain_lines(group) if line.row in rows and line.row not in shown]
    return _assemble(lines, [f"left out, as it has no size here: {line.failure or line.label}" for line in others])


def _assemble(lines: list[Line], left_out: list[str]) -> Table:
    claim, group = claims()["precision"], lines[0].group
    sizes = [[f.claimed(claim, key), *f.planned(claim, key, lines)] for key in claim.models]
    fields = [
        *f.identity(claim.headings["precision"]),
        f.claimed(claim, "bits"),
        f.planned_bits(claim, lines),
        f.measured("bits_per_weight", claim.headings["bits"]),
        *(field for size in sizes for field in size),
        *f.size(group.reference),
        f.claimed(claim, "quality_loss"),
        f.word(words().quality_loss, "quality_loss", claim.headings["quality_loss"]),
        *f.divergence(),
        f.claimed(claim, "inference_speed"),
        f.speed_word(claim.headings["inference_speed"]),
        *f.speed(group.baseline),
        *f.status(shown=any(line.row and line.status != "ok" for line in lines)),
    ]
    notes = [
        *claim_notes(claim, words().quality_loss, group),
        speed_note(group.reference),
        *f.planned_notes(claim, lines),
        *mark_notes("precision", Evidence([group])),
        *left_out,
    ]
    return assemble("precision", "Precision levels", lines, fields, notes)


PRECISION = TableKind(
    name="precision", about="FP32, FP16, INT8, INT4: bits, size, quality loss, speed", place=20, build=table,
    unmeasured=unmeasured,
)  # fmt: skip
