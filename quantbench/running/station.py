"""What a machine of a fleet does: carries out errands, and stores their rows itself, so that they outlive whoever sent them."""

from __future__ import annotations

import atexit
import os
from dataclasses import replace

from quantbench.core.cache import cache_root
from quantbench.core.errors import QuantbenchError, StoreError
from quantbench.core.gpus import number_gpus_by_bus
from quantbench.core.job import Failure
from quantbench.core.machine import describe, require_device
from quantbench.core.record import Status
from quantbench.core.scenario import Scenario
from quantbench.core.scratch import sweep
from quantbench.planning.packages import installed
from quantbench.results.resume import Earlier
from quantbench.results.store import Store
from quantbench.running.again import QUIET_WITHIN_S, TIMES, Only, measure_again
from quantbench.running.errand import Errand, Order, Outcome, Report
from quantbench.running.runner import Runner

_OPEN: dict[str, Station] = {}
"""The station of the run that this process works for: a process that is kept serves one run after the other."""


def carry_out(errand: Errand) -> Report | Failure:
    """Carry an errand out here. A Failure says why none of it can be done on this machine."""
    try:
        return _station(errand.order).carry_out(errand)
    except (QuantbenchError, OSError) as error:
        return Failure(status=Status.ERROR, reason=str(error))


def _station(order: Order) -> Station:
    if order.run.run_id not in _OPEN:
        for station in _OPEN.values():
            station.close()
        _OPEN.clear()
        _OPEN[order.run.run_id] = Station(order)
    return _OPEN[order.run.run_id]


class Station:
    """Works for one run in this process; between errands it keeps its runner, whose engine has the libraries loaded."""

    def __init__(self, order: Order) -> None:
        """StoreError where the run's results are out of reach from here."""
        if order.folder.is_dir():
            os.chdir(order.folder)
        number_gpus_by_bus()
        sweep(cache_root())
        run = replace(order.run, machine=describe(), versions=installed())
        self._stored = Earlier(order.results, run, 0, held=False)
        if not self._stored.begun:
            raise StoreError(
                f"the results folder {order.results} is not the same on every machine ({os.uname().nodename} does not see the "
                "run in it); give --results a shared folder or a URI such as s3://BUCKET/results"
            )
        self._store = Store(order.results, run, {})
        self._runner = Runner(order.plan, self._store, self._stored)
        atexit.register(self.close)

    def close(self) -> None:
        """Stop the engine and remove the scratch folder."""
        atexit.unregister(self.close)
        self._runner.__exit__(None, None, None)

    def carry_out(self, errand: Errand) -> Report:
        """Measure what is not stored yet, once more what other work disturbed, and say what there is now."""
        runner, scenarios = self._runner, errand.scenarios
        require_device(scenarios[0].conditions.device, torch=False)
        self._store.take_numbers(errand.numbers)
        self._stored.look_for(errand.numbers.values())  # an earlier try, or a run that is resumed, may have got this far
        unstored: dict[Scenario, str] = {}
        for scenario in scenarios:
            runner.add(scenario, probed=errand.probed)
        for scenario in scenarios:
            try:
                runner.measure(scenario)
            except StoreError as error:
                unstored[scenario] = str(error)
        measure_again(Only(runner, scenarios), budget_s=TIMES * (runner.took_s(scenarios) + QUIET_WITHIN_S))
        records = {record.scenario: record for record in runner.records}
        outcomes = (
            Outcome(
                record=records[each], row=runner.row(records[each]), trace=runner.trace(each), resumed=each in runner.resumed
            )
            for each in scenarios
            if each not in unstored
        )  # fmt: skip
        return Report(outcomes=tuple(outcomes), unstored=unstored, notes=tuple(runner.notes))
