"""Bencher Metric Format, version 0: what ``bencher run --adapter json`` reads.

Speeds measured beside other work are left out: a metric has no field to mark them, and Bencher would raise an alarm.
Bencher refuses a whole report for one name that is too long, so such a name is cut and made unique by a digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256

from quantbench.core.record import Column
from quantbench.export import Exporter, ExportRow
from quantbench.export._figures import ExportedFigure, by_scenario

_LONGEST = 1024
"""Bytes of a benchmark's name, at most."""


def write(rows: Iterable[ExportRow], columns: Sequence[Column]) -> Iterator[str]:
    """A JSON object {scenario: {metric: {value, lower_value, upper_value}}}."""
    report = {
        _fitting(scenario.name): {figure.column.name: _metric(figure) for figure in figures}
        for scenario in by_scenario(rows)
        if (figures := [figure for figure in scenario.figures(columns) if not figure.disturbed])
    }
    if report:
        yield json.dumps(report, indent=1, allow_nan=False) + "\n"


def _metric(figure: ExportedFigure) -> dict[str, float]:
    ends = dict(zip(("lower_value", "upper_value"), figure.interval or (), strict=False))
    return {"value": figure.value, **ends}


def _fitting(name: str) -> str:
    whole = name.encode()
    if len(whole) <= _LONGEST:
        return name
    digest = sha256(whole).hexdigest()[:16]
    return whole[: _LONGEST - len(digest) - 1].decode(errors="ignore") + "~" + digest


BMF = Exporter(name="bmf", write=write, figures=True)
