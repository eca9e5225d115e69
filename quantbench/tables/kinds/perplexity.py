"""Perplexity and divergence on a running text, as llama-perplexity prints them, the same for every method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantbench.core.units import short, with_error
from quantbench.results.rows import Group
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble, instrument_note
from quantbench.tables.lines import Line, plain_lines
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:

    from quantbench.tables.table import Table

_NOTES = (
    "scored as llama-perplexity scores: chunks of n tokens, BOS first, positions n/2 to n - 2 of each",
    "± is one standard error, clustered by chunk; llama-perplexity assumes independent tokens, as the columns *_se_iid do",
)


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per run, model and text."""
    return [_table(group) for group in groups if group.reads == "text"]


def scores() -> list[f.Field]:
    """The main figures of a scored text."""
    return [
        f.Field(f.metric_heading("ppl"), lambda line: _with_error(line, "ppl")),
        f.Field(f.metric_heading("ppl_ratio", "PPL, x reference"), lambda line: _with_error(line, "ppl_ratio")),
        *f.divergence(),
        f.measured("top1_agreement", "Same top", "{:.2%}".format),
        f.measured("delta_p_rms", "RMS Δp", "{:.2%}".format),
    ]


def _table(group: Group) -> Table:
    lines = plain_lines(group)
    fields = [
        f.Field(Heading(key="variant", title="Variant"), lambda line: Cell(line.label)),
        f.measured("weight_bytes"),
        f.measured("bits_per_weight"),
        *scores(),
        f.measured("kld_median", "Median", short),
        f.measured("kld_p99", "99 %", short),
        f.measured("kld_max", "Maximum", short),
        *f.background("scored_tokens", "ppl_se", "ppl_ratio_se", "delta_p_rms_se", "top1_agreement_se"),
        *f.status(shown=any(line.status != "ok" for line in lines)),
    ]
    return assemble("perplexity", "Perplexity and divergence", lines, fields, [*_NOTES, *instrument_note(group)])


def _with_error(line: Line, name: str) -> Cell:
    return Cell.of(line.number(name), lambda value: with_error(value, line.number(f"{name}_se")))


PERPLEXITY = TableKind(name="perplexity", about="a scored text: PPL, its ratio, KL divergence, same top", place=45, build=table)
