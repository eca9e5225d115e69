"""What a report is made from: the rows of one run, their samples and answers, and those of other runs for the history."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from quantbench.advice.decision import Choice, decide_on
from quantbench.core.errors import unknown_name
from quantbench.core.scenario import reads, short_name
from quantbench.judge.compare import upgrades
from quantbench.report.charts import history as histories
from quantbench.results.rows import Group, Row, groups, rows_of
from quantbench.tables import latest_run

if TYPE_CHECKING:
    import pandas as pd

_ORDER = {"prompts": 0, "text": 1, "inputs": 2}


@dataclass(frozen=True, kw_only=True)
class Results:
    """One run of one or all models. ``samples`` and ``outputs`` are None where none were kept, ``run`` if its row is gone.

    ``history`` holds the rows of the same models in every run that was read, of which the columns ``followed`` are enough;
    ``unread`` counts the earlier runs that were not.
    """

    rows: pd.DataFrame
    history: pd.DataFrame
    samples: pd.DataFrame | None = None
    outputs: pd.DataFrame | None = None
    run: Row | None = None
    unread: int = 0

    @cached_property
    def stored(self) -> list[Group]:
        """The same groups in the order in which they were measured, as tables are made of them."""
        return groups(self.rows)

    @cached_property
    def groups(self) -> list[Group]:
        """The rows by model and prompt set: real models before instrument checks, then prompts, texts, inputs."""
        return sorted(self.stored, key=lambda group: (group.instrument_check, _ORDER[group.reads]))

    @cached_property
    def every_row(self) -> list[Row]:
        """The rows as stored, with repeats kept apart, in the order of the groups."""
        return sorted(rows_of(self.rows), key=lambda row: (row.flag("instrument_check"), _ORDER[reads(row.text("prompts"))]))

    def choice(self, group: Group) -> Choice | None:
        """The decision on a group; None where none can be made."""
        return self._choices.get((group.fact("model"), group.fact("prompts")))

    @cached_property
    def subjects(self) -> list[list[Group]]:
        """The groups of the history, by model and prompt set, in the order in which their runs started."""
        return histories.subjects(self.history)

    @property
    def run_id(self) -> str:
        """The id of the run in this report."""
        return str(self.rows["run_id"].iloc[0])

    @cached_property
    def _choices(self) -> dict[tuple[str, str], Choice]:
        found = {(group.fact("model"), group.fact("prompts")): decide_on(group) for group in self.groups}
        return {names: choice for names, choice in found.items() if choice}


def select(
    scenarios: pd.DataFrame,
    *,
    samples: pd.DataFrame | None = None,
    outputs: pd.DataFrame | None = None,
    runs: pd.DataFrame | None = None,
    run_id: str | None = None,
    model: str | None = None,
) -> Results:
    """The results of a run (the latest, unless named) and of a model (all, unless named), from the stored tables.

    A model may be named as it was on the command line, or as ids show it. UsageError for an unknown run or model.
    """
    if run_id is not None and run_id not in set(scenarios["run_id"]):
        raise unknown_name("run", run_id, scenarios["run_id"].unique())
    of_run = scenarios if run_id is None else scenarios[scenarios["run_id"] == run_id]
    rows = latest_run(of_run if model is None else _of_model(of_run, model))
    ended = [] if runs is None else rows_of(runs[runs["run_id"] == rows["run_id"].iloc[0]])
    return Results(
        rows=rows,
        history=scenarios[scenarios["model"].isin(set(rows["model"]))],
        samples=_belonging(samples, rows),
        outputs=_belonging(outputs, rows),
        run=ended[0] if ended else None,
    )


def followed() -> list[str]:
    """The columns of ``scenarios`` that a report needs of a history."""
    return list(dict.fromkeys((*histories.columns(), *upgrades.columns())))


def latest_of(model: str, latest_first: Iterable[pd.DataFrame]) -> str:
    """The id of the latest run with rows of a model, named as for ``select``, from the rows of a run each; else UsageError."""
    seen: set[str] = set()
    for of_run in latest_first:
        names = set(of_run["model"])
        if _meant(model, names):
            return str(of_run["run_id"].iloc[0])
        seen |= names
    raise unknown_name("model", model, set(map(short_name, seen)))


def _of_model(scenarios: pd.DataFrame, model: str) -> pd.DataFrame:
    names = set(scenarios["model"])
    matching = _meant(model, names)
    if not matching:
        raise unknown_name("model", model, set(map(short_name, names)))
    return scenarios[scenarios["model"].isin(matching)]


def _meant(model: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if model in (name, short_name(name))]


def _belonging(frame: pd.DataFrame | None, rows: pd.DataFrame) -> pd.DataFrame | None:
    if frame is None:
        return None
    of_run = frame[frame["run_id"] == rows["run_id"].iloc[0]]
    found: pd.DataFrame = of_run[of_run["scenario_id"].isin(set(rows["scenario_id"]))]
    return found
