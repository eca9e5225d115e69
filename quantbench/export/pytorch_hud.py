"""Records of the PyTorch HUD's benchmark database (schema v3), one metric each, for upload_benchmark_results.py.

The uploader adds repository, commit, workflow and time, and skips a record without a metric. The HUD shows a failed
scenario through a record of the metric FAILURE_REPORT and ignores its values, so it has none here. A skipped scenario did not
fail and has no record. Maps hold text only. Repeats share one record with a value per process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from quantbench.core.record import Column, Status
from quantbench.export import Exporter, ExportRow
from quantbench.export._figures import ExportedFigure, ExportedScenario, by_scenario, json_array

_SAME = ("scenario_key", "reference", "instrument_check", "kernel", "kv_dtype", "threads", "context")
"""Facts that stay the same when the scenario is run again."""

_FAILURE = "FAILURE_REPORT"
_ELSEWHERE = "elsewhere"


def write(rows: Iterable[ExportRow], columns: Sequence[Column]) -> Iterator[str]:
    """A JSON array of records with benchmark, model, metric, runners and dependencies."""
    text = json_array(record for scenario in by_scenario(rows) for record in _records(scenario, columns))
    if text:
        yield text


def _records(scenario: ExportedScenario, columns: Sequence[Column]) -> Iterator[dict[str, Any]]:
    about = _about(scenario)
    for figure in scenario.figures(columns):
        yield {**about, "metric": _metric(scenario.first, figure)}
    failed = [row for row in scenario.rows if Status(row["status"]).failed]
    if failed:
        facts = {"reason": failed[0]["reason"], "processes": f"{len(failed)} of {len(scenario.rows)}"}
        yield {**about, "metric": _named(_FAILURE, (), failed[0], facts)}


def _about(scenario: ExportedScenario) -> dict[str, Any]:
    """What all records of a scenario share; a record without a runner is shown by the device in its benchmark."""
    row = scenario.first
    runners = _runners(row)
    facts = {"scenario_id": scenario.name, **{name: row[name] for name in _SAME}, "device": "" if runners else _ELSEWHERE}
    return {
        "benchmark": {
            "name": f"quantbench {scenario.prompts}",
            "mode": "inference",
            "dtype": row["precision"] + (" (control)" if row["control"] else ""),
            "extra_info": _texts(facts),
        },
        "model": {"name": scenario.model, "backend": row["method"]},
        "runners": runners,
        "dependencies": {name: {"version": version} for name, version in json.loads(row["versions"] or "{}").items()},
    }


def _metric(row: ExportRow, figure: ExportedFigure) -> dict[str, Any]:
    column = figure.column
    low, high = figure.interval or (None, None)
    facts = {"unit": column.unit, "better": column.better, "low": low, "high": high, "disturbed": figure.disturbed}
    return _named(column.name, figure.values, row, facts)


def _named(name: str, values: Sequence[float], row: ExportRow, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A metric; what differs between runs stands here, so that the HUD recognizes the benchmark itself."""
    run = {"run_id": row["run_id"], "started_at": row["started_at"].isoformat(), "status": row["status"]}
    return {"name": name, "benchmark_values": list(values), "extra_info": _texts({**run, **facts})}


def _runners(row: ExportRow) -> list[dict[str, Any]]:
    """The machine it ran on; empty for a server elsewhere, as the uploader would otherwise name its own machine."""
    device = row["device_found"] or row["device"]
    if not device:
        return []
    name = device.partition(":")[0]
    return [
        {
            "name": name,
            "type": (row["cpu"] if name == "cpu" else row["gpus"]) or "",
            "cpu_info": row["cpu"] or "",
            "gpu_info": row["gpus"] or "",
            "extra_info": _texts({"isa": row["isa"], "machine": row["machine"]}),
        }
    ]


def _texts(facts: Mapping[str, Any]) -> dict[str, str]:
    """A map of text to text, without what is null or empty."""
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


PYTORCH_HUD = Exporter(name="pytorch-hud", write=write, figures=True)
