"""The comparison at the end of a run: its own rows against a baseline, and whether that fails the run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantbench.core.errors import QuantbenchError
from quantbench.judge.compare import Change, Comparison, compare, show
from quantbench.judge.compare.sides import is_whole, load_side
from quantbench.results.runs import Runs
from quantbench.tables.render import as_text, wrap

Ended = Literal["fine", "regression", "insufficient"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What to print (the sentence comes first), how the comparison ended, and whether that fails the run."""

    sentence: tuple[str, ...]
    table: tuple[str, ...]
    ended: Ended
    fails: bool


def gate(baseline: str, results: str, run_id: str, *, fail_on: str, width: int) -> Outcome:
    """Compare the stored rows of ``run_id`` with ``baseline`` (see load_side); lines are for a terminal of ``width`` columns.

    ``fail_on`` is ``worse``, ``insufficient`` (worse, or not enough data) or ``never``. A baseline that cannot be read counts
    as not enough data, not as an error: the run itself is over.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            listed: dict[str, Runs] = {}
            after = load_side(run_id, results, listed=listed)
            before = load_side(baseline, results, exclude=[run_id], listed=listed)
            found = compare(before, after, whole=is_whole(after, run_id, results))
            opening, table, ended = show.sentence(found), as_text([show.table(found, everything=False)], width), _ended(found)
        except QuantbenchError as error:
            opening, table, ended = f"not compared with {baseline}: {error}", "", "insufficient"
    texts = [opening, *dict.fromkeys(f"warning: {each.message}" for each in caught)]
    return _outcome([line for text in texts for line in wrap(text, width)], table.splitlines(), ended, fail_on)


def _ended(found: Comparison) -> Ended:
    if found.of(Change.WORSE):
        return "regression"
    return "fine" if found.conclusive else "insufficient"


def _outcome(sentence: Sequence[str], table: Sequence[str], ended: Ended, fail_on: str) -> Outcome:
    fails = (ended == "regression" and fail_on != "never") or (ended == "insufficient" and fail_on == "insufficient")
    return Outcome(sentence=tuple(sentence), table=tuple(table), ended=ended, fails=fails)
