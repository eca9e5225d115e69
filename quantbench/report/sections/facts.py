"""What a run was measured on and with: machine, versions, conditions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantbench.core.units import format_bytes

if TYPE_CHECKING:
    from quantbench.report._results import Results
    from quantbench.results.rows import Row

Pairs = list[tuple[str, str]]
"""Titles and texts."""

_MACHINE = {
    "cpu": "CPU", "cpus": "Cores", "memory_bytes": "Memory", "isa": "Instructions", "gpus": "GPUs", "driver": "GPU driver",
    "system": "System",
}  # fmt: skip
_RUN = {"command": "Command", "commit": "Commit", "profile": "Profile", "engine": "Engine"}


def machine(results: Results, rows: Sequence[Row]) -> Pairs:
    """The machine; where the run's own row is gone, what its scenarios say."""
    found = _decoded(results.run, "machine_facts") or {name: rows[0].text(name) for name in ("cpu", "isa", "gpus")}
    facts = [(title, _text(name, found[name])) for name, title in _MACHINE.items() if found.get(name)]
    devices = dict.fromkeys(used for row in rows if (used := row.text("device_found") or row.text("device")))
    threads = dict.fromkeys(row.text("threads") for row in rows if row.text("threads"))
    where = [("Devices used", ", ".join(devices)), ("Threads used", ", ".join(threads))]
    return [*facts, *((title, text) for title, text in where if text), ("Fingerprint", rows[0].text("machine"))]


def versions(rows: Sequence[Row]) -> Pairs:
    """Packages and their versions."""
    return list(rows[0].versions.items())


def run_facts(results: Results, rows: Sequence[Row]) -> Pairs:
    """How the run was started and how it ended."""
    run = results.run
    facts = [("Run", results.run_id), ("Started", f"{rows[0].text('started_at')[:19]} UTC")]
    if run is None:
        return [*facts, ("Ended", "not recorded: the run was cut short, or its row of table runs is gone")]
    ended = f"{run.text('finished_at')[:19]} UTC" + (", interrupted" if run.flag("interrupted") else "")
    counts = f"{run.text('planned')} planned, {run.text('finished')} finished, {run.text('ok')} ok"
    if not run.text("finished_at"):
        ended = "not recorded: the run was killed, or is still going"
        counts = f"{run.text('planned')} planned; {sum(row.ok for row in rows)} of the {len(rows)} shown here ok"
    more = [(title, run.text(name)) for name, title in _RUN.items() if run.text(name)]
    return [*facts, ("Ended", ended), ("Scenarios", counts), *more]


def _text(name: str, value: Any) -> str:
    if name == "memory_bytes":
        return format_bytes(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _decoded(row: Row | None, name: str) -> Mapping[str, Any]:
    try:
        found = json.loads((row.text(name) if row else "") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
