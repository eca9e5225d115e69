"""The end of a run on the terminal: the decision, the table behind it, what failed, and where the results are."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from quantbench.advice.decision import decide
from quantbench.core.errors import StoreError
from quantbench.core.units import format_bytes, format_seconds, with_interval
from quantbench.results.rows import Group, groups
from quantbench.results.store import load
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble
from quantbench.tables.kinds.modules import calls
from quantbench.tables.kinds.perplexity import scores
from quantbench.tables.lines import Line, failures, plain_lines
from quantbench.tables.render import as_text, terminal_width, wrap
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:
    import pandas as pd

    from quantbench.tables.table import Table


def run_summary(results: str, run_id: str, width: int | None = None, *, brief: bool = False) -> list[str]:
    """Lines on the run ``run_id`` stored under ``results``, for a terminal of ``width`` columns (default: this one's).

    Decisions come first. A ``brief`` summary has failures in place of the tables. Results that cannot be read make a line,
    not an exception: the run itself is over.
    """
    columns = width or terminal_width()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            frame = load(results, run=run_id)
        except StoreError as error:
            return wrap(str(error), columns)
    lines = [line for warning in caught for line in wrap(f"warning: {warning.message}", columns, "  ")]
    for choice in decide(frame):
        lines += [*wrap(choice.sentence, columns), ""]
    lines += _failures(frame, columns) if brief else as_text(overview(frame), columns).splitlines()
    return [*lines, *wrap(f"results of run {run_id}: {results} (quantbench.load({results!r}) reads them)", columns)]


def _failures(frame: pd.DataFrame, columns: int) -> list[str]:
    """Every row that was not measured, with its reason; rows of one reason together."""
    lines = [line for group in groups(frame) for line in plain_lines(group)]
    said = failures(lines, lambda line: f"{line.group.model}, prompts {line.group.prompts}, {line.label}")
    return [part for each in said for part in wrap(f"- {each}", columns, "  ")]


def overview(frame: pd.DataFrame) -> list[Table]:
    """All rows with their main figures: one table per run, model and prompt set of ``frame``."""
    return [_overview(group) for group in groups(frame)]


def _overview(group: Group) -> Table:
    fields = [
        f.Field(Heading(key="variant", title="Variant"), lambda line: Cell(line.label)),
        f.measured("weight_bytes", "Weights", format_bytes),
        f.measured("bits_per_weight", "Bits/weight", "{:.2f}".format),
        *_figures(group),
        *f.status(shown=True),
    ]
    notes = ["intervals are 95 %, ± is one standard error, MB = 10^6 bytes"]
    return assemble("overview", "Measured", plain_lines(group), fields, notes)


def _figures(group: Group) -> list[f.Field]:
    match group.reads:
        case "prompts":
            return _answers()
        case "text":
            return scores()
        case "inputs":
            return calls(group.reference)


def _answers() -> list[f.Field]:
    return [
        f.Field(f.metric_heading("decode_tps", "Decode, tokens/s"), _decode),
        f.measured("ttft_s", "TTFT", format_seconds),
        *f.divergence(),
        f.measured("top1_agreement", "Top-1", "{:.1%}".format),
    ]


def _decode(line: Line) -> Cell:
    rate = line.number("decode_tps")
    if rate is None:
        return Cell(None)
    return Cell(rate, with_interval(rate, line.number("decode_tps_low"), line.number("decode_tps_high")))
