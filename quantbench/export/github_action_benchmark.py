"""The list that github-action-benchmark reads as customSmallerIsBetter or customBiggerIsBetter.

The action compares by ratio, which means nothing below zero, so negative figures (log ratios, differences) are left out. It
identifies a figure by its name and takes the first of that name. It fails on an empty list, so none is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from quantbench.core.record import Column
from quantbench.export import Exporter, ExportRow
from quantbench.export._figures import ExportedFigure, ExportedScenario, by_scenario, json_array


def write(rows: Iterable[ExportRow], columns: Sequence[Column]) -> Iterator[str]:
    """A JSON array of {name, value, unit, range, extra}; the interval is the range."""
    text = json_array(
        _entry(scenario, figure) for scenario in by_scenario(rows) for figure in scenario.figures(columns) if figure.value >= 0
    )
    if text:
        yield text


def _entry(scenario: ExportedScenario, figure: ExportedFigure) -> dict[str, Any]:
    facts = {name: scenario.first[name] for name in ("run_id", "device_found", "kernel")} | {"disturbed": figure.disturbed}
    entry = {
        "name": f"{scenario.name} {figure.column.name}",
        "value": figure.value,
        "unit": figure.column.unit,
        "extra": "\n".join(f"{name}: {value}" for name, value in facts.items() if value),
    }
    if figure.interval:
        entry["range"] = "{:.6g} to {:.6g}".format(*figure.interval)
    return entry


GITHUB_ACTION_BENCHMARK = Exporter(name="github-action-benchmark", write=write, figures=True, one_direction=True)
