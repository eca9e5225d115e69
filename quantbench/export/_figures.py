"""One figure for each scenario and metric: the median of its processes, with the interval where there is one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from quantbench.core.record import Column
from quantbench.core.scenario import short_name
from quantbench.export import ExportRow
from quantbench.results.rows import Row
from quantbench.results.schema import timed_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFigure:
    """A metric of a scenario in the column's unit: a value per process, and from the lowest to the highest interval end."""

    column: Column
    values: tuple[float, ...]
    interval: tuple[float, float] | None
    disturbed: str = ""
    """The other work that disturbed a speed, in words; empty where none did."""

    @property
    def value(self) -> float:
        """The median, as the tables show it."""
        return self.values[0] if len(set(self.values)) == 1 else median(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedScenario:
    """The rows of one scenario, a row per process."""

    name: str
    model: str
    prompts: str
    rows: tuple[ExportRow, ...]

    @property
    def first(self) -> ExportRow:
        """A row to take facts from: a measured one if there is any."""
        return next((row for row in self.rows if row["status"] == "ok"), self.rows[0])

    def figures(self, columns: Iterable[Column]) -> list[ExportedFigure]:
        """Its figures; one that a measured process lacks is left out, as the median of the others would hide that."""
        rows = [row for row in self.rows if row["status"] == "ok"]
        beside = next((row.get("disturbance") or "other work" for row in rows if row.get("disturbed") is True), "")
        found = []
        for column in columns:
            if values := _finite(rows, column.name):
                lows, highs = _finite(rows, f"{column.name}_low"), _finite(rows, f"{column.name}_high")
                interval = (min(lows), max(highs)) if lows and highs else None
                why = beside if column.name in timed_columns() else ""
                found.append(ExportedFigure(column=column, values=values, interval=interval, disturbed=why))
        return found


def by_scenario(rows: Iterable[ExportRow]) -> list[ExportedScenario]:
    """The scenarios of a run in the order of their first rows; within a run an id names one scenario.

    Names show only the last part of a path, and so are the same on every machine.
    """
    found: dict[str, list[ExportRow]] = {}
    for row in rows:
        found.setdefault(row["scenario_id"], []).append(row)
    return [
        ExportedScenario(name=name, model=short_name(of[0]["model"]), prompts=Row(of[0]).prompts, rows=tuple(of))
        for name, of in found.items()
    ]


def json_array(items: Iterable[Any]) -> str:
    """A JSON array with an item on each line; empty text where there is none."""
    lines = [json.dumps(item, allow_nan=False) for item in items]
    return "[\n" + ",\n".join(lines) + "\n]\n" if lines else ""


def _finite(rows: Sequence[ExportRow], name: str) -> tuple[float, ...]:
    """A figure of each row; empty when one of them lacks it."""
    values = [row.get(name) for row in rows]
    known = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return tuple(known) if len(known) == len(values) else ()
