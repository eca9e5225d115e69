"""What a job costs more on a Ray cluster than with the process engine, once the cluster is up."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from ratios import CannotRunError, Result

if TYPE_CHECKING:
    from quantbench.core.scenario import Scenario
    from quantbench.running.fleet import FleetRunner
    from quantbench.running.runner import Runner

REPEATS = 4


def ray_overhead() -> Iterator[Result]:
    """Wall time of a variant less what was spent opening and measuring, on a cluster of this machine and by processes."""
    try:
        import ray
    except ImportError:
        raise CannotRunError("Ray is not installed; pip install '.[ray]'") from None

    ours, bare = _overheads("ray"), _overheads("process")
    ray.shutdown()
    yield Result("Ray over processes, per job (in s)", f"{ours:.3f} s", f"{bare:.3f} s", ours - bare, "<= 1.0")


def _overheads(engine: str) -> float:
    """The median overhead of a job; the first of each variant is left out, as libraries and references are loaded for it."""
    from quantbench.core.machine import describe
    from quantbench.core.scenario import PROFILES, Conditions, Scenario, Variant
    from quantbench.planning.options import Plan
    from quantbench.results.store import Run, Store
    from quantbench.running.errand import Order
    from quantbench.running.fleet import FleetRunner
    from quantbench.running.progress import Progress
    from quantbench.running.runner import Runner

    conditions = Conditions(output_tokens=8, answer_tokens=8, continuation_tokens=8)
    scenarios = tuple(
        Scenario(
            model="canary", variant=Variant(method="torch", precision=name), prompts="two", conditions=conditions, repeat=repeat
        )
        for repeat in range(REPEATS)
        for name in ("fp32", "bf16")
    )  # fmt: skip
    run = Run(machine=describe(), versions={}, command="harness", commit="", profile="quick", engine=engine)
    plan = Plan(scenarios=scenarios, effort=PROFILES["quick"], engine=engine, ray_address="local" if engine == "ray" else None)
    with tempfile.TemporaryDirectory() as name:
        store = Store(name, run)
        store.begin(planned=len(scenarios))
        if engine == "process":
            return _median(Runner(plan, store), scenarios)
        order = Order(run=store.run, plan=plan, results=name, folder=Path.cwd())
        return _median(FleetRunner(order, store, {}, Progress()), scenarios)


def _median(runner: Runner | FleetRunner, scenarios: tuple[Scenario, ...]) -> float:
    overheads = []
    with runner:
        for scenario in scenarios:
            started = time.perf_counter()
            record = runner.measure(scenario)
            wall = time.perf_counter() - started
            trace = runner.trace(scenario)
            if trace is None:
                raise SystemExit(f"{scenario.id}: {record.status}: {record.reason}")
            if scenario.repeat:
                overheads.append(wall - trace.measured_s)
    return median(overheads)
