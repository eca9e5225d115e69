"""Jobs on the canary, as short as a profile allows, for what a job costs beside its measuring."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantbench.core.scenario import Scenario
    from quantbench.core.trace import Trace
    from quantbench.running.fleet import FleetRunner
    from quantbench.running.runner import Runner


def short_jobs(precisions: Sequence[str], repeats: int = 1) -> tuple[Scenario, ...]:
    """Scenarios of torch on the canary, every precision once before any is repeated."""
    from quantbench.core.scenario import Conditions, Scenario, Variant

    conditions = Conditions(output_tokens=8, answer_tokens=8, continuation_tokens=8)
    variants = [Variant(method="torch", precision=name) for name in precisions]
    return tuple(
        Scenario(model="canary", variant=variant, prompts="two", conditions=conditions, repeat=repeat)
        for repeat in range(repeats)
        for variant in variants
    )


@contextmanager
def runner(engine: str, scenarios: tuple[Scenario, ...]) -> Iterator[Runner | FleetRunner]:
    """What measures them by an engine, ready for the first; rows go to a folder that is removed."""
    from quantbench.core.machine import describe
    from quantbench.core.scenario import PROFILES
    from quantbench.planning.options import Plan
    from quantbench.results.store import Run, Store
    from quantbench.running.errand import Order
    from quantbench.running.fleet import FleetRunner
    from quantbench.running.progress import Progress
    from quantbench.running.runner import Runner

    run = Run(machine=describe(), versions={}, command="harness", commit="", profile="quick", engine=engine)
    plan = Plan(scenarios=scenarios, effort=PROFILES["quick"], engine=engine, ray_address="local" if engine == "ray" else None)
    with tempfile.TemporaryDirectory() as name:
        store = Store(name, run)
        store.begin(planned=len(scenarios))
        order = Order(run=store.run, plan=plan, results=name, folder=Path.cwd())
        with Runner(plan, store) if engine == "process" else FleetRunner(order, store, {}, Progress()) as opened:
            yield opened


def measure(by: Runner | FleetRunner, scenario: Scenario) -> Trace:
    """Measure one of them; ends the harness where it fails."""
    record = by.measure(scenario)
    trace = by.trace(scenario)
    if trace is None:
        raise SystemExit(f"{scenario.id}: {record.status}: {record.reason}")
    return trace
