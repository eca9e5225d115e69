"""The GGUF table: Q2_K to Q8_0 as claimed, as llama.cpp's dry run plans a 7B, and as measured on one model.

Every other planned GGUF level follows without claims. The words are anchored on published 7-8B figures (see ``words``), and the
recommendation follows from the quality word. A canary is an instrument check: its table shows that the instrument works.
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
from quantbench.tables.assemble import assemble, claim_notes
from quantbench.tables.lines import Line, claimed_lines, lines_of

if TYPE_CHECKING:

    from quantbench.tables.table import Table


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per run, model and prompt set."""
    return [made for group in groups if group.reads == "prompts" and (made := _table(group))]


def unmeasured() -> list[Table]:
    """The claimed levels, planned."""
    return [_assemble(claimed_lines(claims()["gguf"]))]


def _table(group: Group) -> Table | None:
    lines = lines_of(group, claims()["gguf"], lambda row: row.text("method") == "gguf")
    return _assemble(lines) if lines else None


def _assemble(lines: list[Line]) -> Table:
    claim, group = claims()["gguf"], lines[0].group
    scale = words().quality
    fields = [
        *f.identity(claim.headings["quantization"]),
        f.claimed(claim, "bits"),
        f.planned_bits(claim, lines),
        f.measured("bits_per_weight", claim.headings["bits"]),
        f.claimed(claim, "size_7b"),
        *f.planned(claim, "size_7b", lines),
        *f.size(group.reference),
        f.claimed(claim, "quality"),
        f.word(scale, "quality", claim.headings["quality"]),
        *f.divergence(),
        f.claimed(claim, "recommended"),
        f.word(scale, "recommended", claim.headings["recommended"], lambda each, value: each.anchor(value).recommended),
        *f.speed(group.baseline),
        *f.background("artifact_bytes"),
        *f.status(shown=any(line.row and line.status != "ok" for line in lines)),
    ]
    notes = [
        *claim_notes(claim, scale, group),
        *f.planned_notes(claim, lines),
        *_notes(group),
        *mark_notes("gguf", Evidence([group])),
    ]
    return assemble("gguf", "GGUF quantization levels", lines, fields, notes)


def _notes(group: Group) -> list[str]:
    build = group.version("llama-cpp-python")
    drift = f"files were made and run by the llama.cpp of llama-cpp-python {build}; its recipes change between builds"
    return ["recommended follows from the quality word", *([drift] if build else [])]


GGUF = TableKind(
    name="gguf", about="Q2_K to Q8_0: bits, size, quality, recommended use, speed", place=30, build=table,
    unmeasured=unmeasured,
)  # fmt: skip
