"""Which rows may be compared: those of one scenario with the same settings, on one machine, by one kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantbench.core.record import Status
from quantbench.results.rows import Row, rows_of

if TYPE_CHECKING:
    import pandas as pd

_SAME: Mapping[str, str] = {
    "schema_version": "stored under another schema version",
    "scenario_key": "asked differently",
    "machine": "measured on another machine",
    "kernel": "run by another kernel",
}
"""What must agree, checked in this order, and what to say where it does not."""

GONE = "missing from the candidate"
_ASKED = (
    "threads", "context", "output_tokens", "answer_tokens", "continuation_tokens", "answered_prompts", "seed", "reference",
    "device",
)  # fmt: skip
COLUMNS = (*_SAME, *_ASKED, "cpu", "status", "reason", "versions")
"""The columns that tell which rows may be compared, and how they ended."""

_SHOWN = 12
"""Characters of a hash that a sentence shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioPair:
    """The rows of one scenario on both sides; ``again`` are the candidate's second measurement.

    ``incomparable`` says why they cannot be compared, ``gone`` that the candidate has none, ``ended`` how the candidate ended
    where one side has no ok row, ``failing`` how some of the candidate's processes failed where none of the baseline's did.
    """

    scenario_id: str
    baseline: tuple[Row, ...] = ()
    candidate: tuple[Row, ...] = ()
    again: tuple[Row, ...] = ()
    incomparable: str = ""
    gone: bool = False
    ended: str = ""
    worse_end: bool = False
    failing: str = ""

    @property
    def comparable(self) -> bool:
        """Whether both sides have rows that may be compared."""
        return not self.incomparable and not self.gone

    def changed_versions(self) -> dict[str, tuple[str, str]]:
        """Libraries that both sides name in different versions."""
        if not self.baseline or not self.candidate:
            return {}
        return changed_versions(self.baseline[-1].versions, self.candidate[-1].versions)


def pairs(
    baseline: pd.DataFrame, candidate: pd.DataFrame, again: pd.DataFrame | None, processes: int
) -> Iterator[ScenarioPair]:
    """Every scenario of either side, the candidate's first in its order.

    Without ``again``, a candidate with at least twice ``processes`` rows is split: the later half is its second measurement.
    """
    first, second = _by_scenario(baseline), _by_scenario(candidate)
    further = _by_scenario(again) if again is not None else {}
    for name, rows in second.items():
        yield _pair(name, first.get(name, []), rows, further.get(name, []), processes)
    for name, rows in first.items():
        if name not in second:
            good = tuple(row for row in rows if row.ok)
            yield ScenarioPair(scenario_id=name, baseline=good, gone=bool(good), incomparable="" if good else GONE)


def _by_scenario(frame: pd.DataFrame) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in sorted(
        rows_of(frame), key=lambda each: (each.text("started_at"), each.text("run_id"), each.number("repeat") or 0)
    ):
        found.setdefault(row.text("scenario_id"), []).append(row)
    return found


def _pair(name: str, first: Sequence[Row], second: Sequence[Row], again: Sequence[Row], processes: int) -> ScenarioPair:
    if not first:
        return ScenarioPair(scenario_id=name, incomparable="missing from the baseline")
    alike, further = list(first), list(again)
    for column, what in _SAME.items():
        wanted = next((row.values.get(column) for row in reversed(second) if row.values.get(column) is not None), None)
        kept, second, further = (_agreeing(rows, column, wanted) for rows in (alike, second, further))
        if not kept:
            return ScenarioPair(scenario_id=name, incomparable=f"{what}: {_difference(column, alike[-1], second[-1])}")
        alike = kept
    good = [[row for row in rows if row.ok] for rows in (alike, second)]
    if not good[0] and not good[1]:
        return ScenarioPair(scenario_id=name, incomparable=f"measured on neither side: {_said(second[-1])}")
    if not good[0] or not good[1]:
        return _ended(name, alike, second)
    measured, later = good[1], [row for row in further if row.ok]
    if not later and len(measured) >= 2 * processes:
        half = len(measured) // 2
        measured, later = measured[:half], measured[half:]
    return ScenarioPair(
        scenario_id=name, baseline=tuple(good[0]), candidate=tuple(measured), again=tuple(later),
        failing="" if any(map(_failed, alike)) else _failing([*second, *further]),
    )  # fmt: skip


def _agreeing(rows: Sequence[Row], column: str, wanted: object) -> list[Row]:
    """The rows with the value ``wanted``, or with none at all."""
    return [row for row in rows if wanted is None or row.values.get(column) in (wanted, None)]


def _failed(row: Row) -> bool:
    return not row.ok and row.text("status") != Status.SKIPPED


def _failing(rows: Sequence[Row]) -> str:
    """How many of the rows failed, and how the first of them did; empty where none did."""
    failed = [row for row in rows if _failed(row)]
    return f"{len(failed)} of {len(rows)} processes failed, where none did before: {_said(failed[0])}" if failed else ""


def _said(row: Row) -> str:
    return f"{row.text('status')}, {row.text('reason') or 'no reason kept'}"


def _ended(name: str, first: Sequence[Row], second: Sequence[Row]) -> ScenarioPair:
    """Only one side was measured: that counts, unless the baseline was merely skipped."""
    worse = not any(row.ok for row in second)
    failed = next(filter(_failed, second if worse else first), (second if worse else first)[-1])
    said = _said(failed)
    if not worse and not _failed(failed):
        return ScenarioPair(scenario_id=name, incomparable=f"baseline {said}")
    ended = f"was ok, now {said}" if worse else f"was {said}; now ok"
    return ScenarioPair(scenario_id=name, baseline=tuple(first), candidate=tuple(second), ended=ended, worse_end=worse)


def _difference(column: str, first: Row, second: Row) -> str:
    """What differs, as far as the columns show."""
    if column == "scenario_key":
        parts = [
            f"{name} {first.values.get(name)} became {second.values.get(name)}"
            for name in _ASKED
            if first.values.get(name) != second.values.get(name)
        ]
        return ", ".join(parts) or "the files of the model, the prompts or the calibration"
    if column == "machine" and first.text("cpu") != second.text("cpu"):
        return f"{first.text('cpu') or 'unknown'} became {second.text('cpu') or 'unknown'}"
    return f"{first.text(column)[: _SHOWN * 4] or 'unknown'} became {second.text(column)[: _SHOWN * 4] or 'unknown'}"


def changed_versions(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The libraries that both name in different versions; one that only a side names may just not have been needed there."""
    both = sorted(first.keys() & second.keys())
    return {name: (first[name], second[name]) for name in both if first[name] != second[name]}
