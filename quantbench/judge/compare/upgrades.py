"""What upgrades of libraries cost: on one machine, the last runs before versions changed against the first runs after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from quantbench.judge.compare import Comparison, compare
from quantbench.judge.compare import _figures as figures
from quantbench.judge.compare._pairs import COLUMNS, changed_versions
from quantbench.results.rows import Row, rows_of
from quantbench.results.store import in_order

if TYPE_CHECKING:
    import pandas as pd

_IDENTITY = (
    "run_id", "run_number", "started_at", "scenario_id", "repeat", "model", "method", "precision", "artifact", "control",
    "prompts", "batch", "status", "instrument_check", "cpu", "gpus", "versions",
)  # fmt: skip
_DOUBTS = ("disturbed", "disturbance", "gpu_throttle_reasons", "null_reasons")
_WINDOW = 10
"""Runs of a side, at most: enough for a verdict and its confirmation from runs that measured in one process each."""

PEAKS: Mapping[str, float] = {"peak_rss_bytes": 0.02, "peak_device_allocated_bytes": 0.02}
"""Peaks of memory with the least relative change that counts: as far as a peak may differ from an outside witness's
(bench/harness/README.md, ``peak-memory``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """One change of versions: by library the earlier and the later one, and what changed with it.

    ``rows`` are the latest rows of the scenarios that both sides measured, by scenario id; ``runs`` are those compared.
    """

    changes: Mapping[str, tuple[str, str]]
    comparison: Comparison
    rows: Mapping[str, Row]

    @property
    def runs(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The runs before and after it."""
        return self.comparison.baseline_runs, self.comparison.candidate_runs


def columns() -> tuple[str, ...]:
    """The columns of ``scenarios`` that ``upgrades`` and what says them look at."""
    speeds = [name for each in figures.timed() for name in (each.raw, each.ratio)]
    exact = [name for each in figures.exact() for name in (each.column, each.slicing) if name]
    return tuple(dict.fromkeys((*_IDENTITY, *COLUMNS, *speeds, *exact, *PEAKS, *_DOUBTS)))


def upgrades(history: pd.DataFrame, most: int) -> list[Upgrade]:
    """The latest upgrades in ``history``, rows of ``scenarios``: at most ``most``, the latest first.

    Runs of unlike machines are never compared, and what was asked differently is incomparable, as in any comparison. A
    scenario that only one side measured is left out: what a run measures is chosen anew each time.
    """
    order = {run: place for place, run in enumerate(in_order(history))}
    pairs = [pair for _, of in history.groupby("machine", sort=False) for pair in _neighbours(of, order)]
    pairs.sort(key=lambda pair: order[pair[1].runs[0]], reverse=True)
    found = (_upgrade(history, before, after) for before, after in pairs)
    return list(islice(filter(None, found), most))


@dataclass(slots=True)
class _Stretch:
    """Runs one after another on one machine, with the same versions of all libraries that they name."""

    runs: list[str]
    versions: dict[str, str]


def _neighbours(history: pd.DataFrame, order: Mapping[str, int]) -> Iterator[tuple[_Stretch, _Stretch]]:
    """Each stretch with the next one."""
    stretches = _stretches(history[["run_id", "versions"]].drop_duplicates("run_id"), order)
    yield from pairwise(stretches)


def _stretches(firsts: pd.DataFrame, order: Mapping[str, int]) -> list[_Stretch]:
    found: list[_Stretch] = []
    for row in sorted(rows_of(firsts), key=lambda row: order[row.text("run_id")]):
        run, versions = row.text("run_id"), row.versions
        if found and not changed_versions(found[-1].versions, versions):
            found[-1].runs.append(run)
            found[-1].versions |= versions
        else:
            found.append(_Stretch([run], versions))
    return found


def _upgrade(history: pd.DataFrame, before: _Stretch, after: _Stretch) -> Upgrade | None:
    """The comparison of two stretches; None where no scenario is in both and measured in one of them."""
    first, second = _rows(history, before.runs[-_WINDOW:]), _rows(history, after.runs[:_WINDOW])
    measured = {name for side in (first, second) for name in side.loc[side["status"] == "ok", "scenario_id"]}
    both = set(first["scenario_id"]) & set(second["scenario_id"]) & measured
    if not both:
        return None
    first, second = (side[side["scenario_id"].isin(both)] for side in (first, second))
    return Upgrade(
        changes=changed_versions(before.versions, after.versions),
        comparison=compare(first, second, thresholds=PEAKS),
        rows={row.text("scenario_id"): row for row in rows_of(second)},
    )


def _rows(history: pd.DataFrame, runs: Sequence[str]) -> pd.DataFrame:
    return history[history["run_id"].isin(runs)]
