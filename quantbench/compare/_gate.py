"""The comparison at the end of a run: its own rows against a baseline, and whether that fails the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantbench.compare import Comparison, Verdict, _show, compare
from quantbench.compare._side import load_side
from quantbench.errors import QuantbenchError
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
    """Compare the stored rows of ``run_id`` with ``baseline``, see load_side; lines are for a terminal of ``width`` columns.

    ``fail_on`` is ``worse``, ``insufficient`` (worse, or not enough data) or ``never``. A baseline that cannot be read lacks
    data: the run itself is over.
    """
    try:
        after = load_side(run_id, results)
        before = load_side(baseline, results, but=[run_id])
        found = compare(before, after)
    except QuantbenchError as error:
        return _outcome(wrap(f"not compared with {baseline}: {error}", width), [], "insufficient", fail_on)
    table = as_text([_show.table(found, everything=False)], width).splitlines()
    return _outcome(wrap(_show.sentence(found), width), table, _ended(found), fail_on)


def _ended(found: Comparison) -> Ended:
    if found.of(Verdict.WORSE):
        return "regression"
    return "fine" if found.conclusive else "insufficient"


def _outcome(sentence: Sequence[str], table: Sequence[str], ended: Ended, fail_on: str) -> Outcome:
    fails = (ended == "regression" and fail_on != "never") or (ended == "insufficient" and fail_on == "insufficient")
    return Outcome(sentence=tuple(sentence), table=tuple(table), ended=ended, fails=fails)
