"""The short answer about a run: what to ship in one line, at most ten rows, and where the rest is."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING

from quantbench.advice.decision import decide_on
from quantbench.advice.headline import COLUMNS, context, headline, named
from quantbench.core.errors import StoreError
from quantbench.planning.options import results_option
from quantbench.results.rows import groups
from quantbench.results.store import load
from quantbench.tables.kinds.measured import shortlist, table_of
from quantbench.tables.lines import failures, plain_lines
from quantbench.tables.render import as_markdown, as_text, terminal_width, wrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from quantbench.advice.decision import Choice, Limits
    from quantbench.results.rows import Group
    from quantbench.tables.table import Table

MEASURED = "quantbench tables measured"
_REASONS = 3


def run_summary(results: str, run_id: str, width: int | None = None, *, brief: bool = False) -> list[str]:
    """Lines about the run ``run_id`` stored under ``results``, for a terminal of ``width`` columns (default: this one's).

    A ``brief`` summary has no rows. Results that cannot be read give a line, not an exception: the run itself is over.
    """
    columns = min(COLUMNS, width or terminal_width())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            frame = load(results, run=run_id)
        except StoreError as error:
            return wrap(str(error), columns)
    lines = [line for warning in caught for line in wrap(f"warning: {warning.message}", columns, "  ")]
    lines += short_text(frame, results, columns, brief=brief)
    more = f"quantbench tables{results_option(results)}"
    place = f"results of run {run_id}: {results} (in pandas: quantbench.load({results!r})); more tables: {more}"
    return [*lines, *wrap(place, columns)]


def short_text(
    frame: pd.DataFrame, results: str, width: int | None = None, *, brief: bool = False, everything: bool = False,
    limits: Limits | None = None,
) -> list[str]:
    """Lines for a terminal, for each model and prompt set: decision, rows, and how many were not measured.

    ``frame`` holds rows of ``scenarios`` under ``results``. ``brief`` leaves the rows out, ``everything`` shows all of them.
    The decision is one within ``limits``, by default those of ``decide``.
    """
    columns = min(COLUMNS, width or terminal_width())
    options = results_option(results)
    lines: list[str] = []
    for group, choice in _answered(frame, limits):
        said = _said(choice, options + (limits.options if limits else ""))
        for text, whole in zip(said, (columns == COLUMNS, False), strict=False):
            lines += [text] if whole else wrap(text, columns)  # a decision is one line, however long its names are
        if not brief:
            table = as_text([_rows(group, choice, everything=everything)], columns).rstrip("\n").splitlines()
            lines += [*([""] if said else []), *table]
        lines += [part for text in _unmeasured(group, options) for part in wrap(text, columns, "  ")]
        lines.append("")
    return lines


def short_markdown(frame: pd.DataFrame, results: str, *, everything: bool = False) -> str:
    """The same as GitHub-flavoured Markdown."""
    from quantbench.core.text import escape_markdown

    options = results_option(results)
    parts: list[str] = []
    for group, choice in _answered(frame):
        said = [escape_markdown(text) for text in [*_said(choice, options), *_unmeasured(group, options)]]
        parts += ["\n\n".join(said), as_markdown([_rows(group, choice, everything=everything)]).strip("\n")]
    return "\n\n".join(filter(None, parts))


def _answered(frame: pd.DataFrame, limits: Limits | None = None) -> list[tuple[Group, Choice | None]]:
    """Each group with its decision, those with a decision first; it is None where no prompts were answered."""
    pairs = [(group, decide_on(group, limits)) for group in groups(frame)]
    return sorted(pairs, key=lambda pair: pair[1] is None)


def _said(choice: Choice | None, options: str) -> Sequence[str]:
    return [text for text in (headline(choice), context(choice, options=options)) if text] if choice else []


def _rows(group: Group, choice: Choice | None, *, everything: bool) -> Table:
    if everything:
        return table_of(group)
    return shortlist(group, named(choice) if choice else (), COLUMNS)


def _unmeasured(group: Group, options: str) -> list[str]:
    """How many rows have no figures; of those that were not skipped, up to _REASONS reasons."""
    ended = Counter(row.text("status") for row in group.rows if not row.ok)
    if not ended:
        return []
    counts = ", ".join(f"{count} {status}" for status, count in ended.most_common())
    said = [f"{ended.total()} of {len(group.rows)} not measured: {counts}; reasons: {MEASURED}{options}"]
    failed = failures(line for line in plain_lines(group) if line.status != "skipped")
    return [*said, *(f"- {sentence}" for sentence in failed[:_REASONS])]
