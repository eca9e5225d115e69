"""``quantbench.measure``: one variant, measured from a script or a notebook; and the part of it that the fixture shares."""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantbench.core.errors import QuantbenchError, UnsupportedError, UsageError, unknown_name
from quantbench.core.record import Status
from quantbench.core.scenario import Scenario, Variant, at_batch
from quantbench.planning.options import OF_A_SCENARIO, OPTIONS, RunOptions, convert, single
from quantbench.results.rows import Row
from quantbench.running.measurement import Measurement, Reading
from quantbench.running.session import Session

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from quantbench.core.record import Record

XDIST_WORKER = "PYTEST_XDIST_WORKER"
_BESIDE = "nothing is timed in a worker of pytest-xdist, whose tests run beside others; for speeds, run without -n"
_AXES = ("model", "method", "precision", "artifact", "prompts", "batch", "repeats")
_OF_RUNS = ("resume", "compare", "fail_on")
_WHOLE = tuple(option.key for option in OPTIONS if option.key not in (*_AXES, *_OF_RUNS, *OF_A_SCENARIO))
"""Settings of a whole session."""
_KEPT_OUT = (*_AXES, *_OF_RUNS, "results", "keep_jobs")
"""Settings that a command for one scenario says by its names, or that change nothing of what is measured."""


def beside_other_tests() -> str:
    """Why nothing may be timed in this process: other tests run at the same time. Empty where none do."""
    return _BESIDE if os.environ.get(XDIST_WORKER) else ""


def measure(model: str | os.PathLike[str], variant: str, *, prompts: str = "", **settings: Any) -> Measurement:
    """Measure one variant of a model against its reference, in a run of its own, and return its figures.

    ``variant`` is METHOD/PRECISION, such as ``gguf/q4_k_m``, or NAME=WHERE for a published artifact of the model;
    ``prompts`` is a prompt set (the usual one unless given). ``settings`` are those of ``quantbench run``, as names:
    ``reference="torch/bf16"``, ``device="cuda"``, ``profile="quick"``. The run is stored in the folder ``results`` unless
    ``results`` names another; with ``results=None`` it is not kept.

    Raises UnsupportedError where it cannot be measured here, UsageError for what does not exist, and any other
    QuantbenchError where it failed, each with the reason.
    """
    given = _converted(settings, (*OF_A_SCENARIO, *_WHOLE))
    with ExitStack() as stack:
        if "results" in given and given["results"] is None:
            from quantbench.core.scratch import scratch_folder

            given["results"] = str(stack.enter_context(scratch_folder()))
        defaults = RunOptions.read(lambda option: option.default)
        session = Session(
            replace(defaults, **given), command=f"quantbench.measure({os.fspath(model)!r}, {variant!r})", root=Path.cwd(),
            untimed=beside_other_tests(),
        )  # fmt: skip
        single(session.options, os.fspath(model), variant, prompts)  # what does not exist leaves no run behind
        session.start((), verbosity=None)
        stack.push(lambda _, error, __: session.finish(interrupted=isinstance(error, KeyboardInterrupt)))
        scenario = session.ask(os.fspath(model), variant, prompts, session.options)
        record = session.runner.measure(scenario)
        if record.values.get("disturbed") is True:
            record = session.steady(scenario)
        return Measurement(row_of(session, record), Reading(again=again(session.options, scenario), untimed=session.untimed))


def ask(session: Session, model: str, variant: str, prompts: str, settings: Mapping[str, Any]) -> tuple[Scenario, Reading]:
    """One more scenario of an open session, and how its measurement is read; UsageError for settings of the whole session."""
    for name in settings:
        if name in (*_WHOLE, *_OF_RUNS):
            dashed = name.replace("_", "-")
            raise UsageError(f"{name} holds for all tests of a session; give it to pytest, as --quantbench-{dashed}")
    options = replace(session.options, **_converted(settings, OF_A_SCENARIO))
    scenario = session.ask(model, variant, prompts, options)
    steady = partial(_steady_row, session, scenario)
    return scenario, Reading(again=again(options, scenario), untimed=session.untimed, steady=steady)


def row_of(session: Session, record: Record) -> Row:
    """The row of a scenario that was measured; UnsupportedError where it was skipped, QuantbenchError where it failed."""
    if record.status is Status.SKIPPED:
        raise UnsupportedError(f"{record.scenario.id}: {record.reason}")
    if record.status is not Status.OK:
        raise QuantbenchError(f"{record.scenario.id}: {record.status}, {record.reason}")
    return Row(session.runner.row(record))


def again(options: RunOptions, scenario: Scenario) -> str:
    """The command that measures the scenario once more."""
    names: dict[str, Any] = {
        "model": scenario.model, **_named(scenario.variant), "prompts": at_batch(scenario.prompts, scenario.batch),
    }  # fmt: skip
    for option in OPTIONS:
        value = getattr(options, option.key)
        if option.key not in _KEPT_OUT and value != convert(option, option.default):
            names[option.name] = value
    said = (f"--{name}" if value is True else f"--{name}={value}" for name, value in names.items())
    return shlex.join(["quantbench", "run", *said])


def _named(variant: Variant) -> dict[str, str]:
    """The options that name a variant."""
    if variant.artifact:
        return {"artifact": f"{variant.artifact}={variant.place}"}
    return {"method": variant.method, "precision": variant.precision}


def _steady_row(session: Session, scenario: Scenario) -> Row:
    return row_of(session, session.steady(scenario))


def _converted(settings: Mapping[str, Any], allowed: Collection[str]) -> dict[str, Any]:
    """Settings as their options' types."""
    options = {option.key: option for option in OPTIONS}
    for name in settings:
        if name not in allowed:
            raise unknown_name("setting", name, allowed)
    return {name: convert(options[name], value) for name, value in settings.items()}
