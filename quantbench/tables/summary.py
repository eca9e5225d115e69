"""The end of a run on the terminal: the decision, the table behind it, what failed, and where the results are."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from quantbench.advice.decision import decide
from quantbench.core.errors import StoreError
from quantbench.results.rows import groups
from quantbench.results.store import load
from quantbench.tables.kinds.measured import overview
from quantbench.tables.lines import failures, plain_lines
from quantbench.tables.render import as_text, terminal_width, wrap

if TYPE_CHECKING:
    import pandas as pd


def run_summary(results: str, run_id: str, width: int | None = None, *, brief: bool = False) -> list[str]:
    """Lines about the run ``run_id`` stored under ``results``, for a terminal of ``width`` columns (default: this one's).

    Decisions come first. A ``brief`` summary lists failures instead of tables. Results that cannot be read give a line,
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
    """Every row that was not measured, with its reason; rows with the same reason together."""
    lines = [line for group in groups(frame) for line in plain_lines(group)]
    said = failures(lines, lambda line: f"{line.group.model}, prompts {line.group.prompts}, {line.label}")
    return [part for each in said for part in wrap(f"- {each}", columns, "  ")]
