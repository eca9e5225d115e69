"""A worker that is ended, stopped, stuck or out of memory costs its own row, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from quantbench.core.errors import QuantbenchError
from quantbench.core.job import Failure, Job, Task
from quantbench.core.record import Status
from quantbench.core.scenario import PROFILES, Conditions, Variant
from quantbench.models.checkpoint import resolve
from quantbench.planning import prompts
from quantbench.running.engines.process import ProcessRunner, open_process

if TYPE_CHECKING:
    from conftest import Place

LONG = os.environ.get("QUANTBENCH_FAULTS", "") == "all"
PLACES = ("loading", "memory", "scoring", "latency")
ENDS = {
    "sigkill": ("crashed", "the worker was ended by SIGKILL"),
    "sigsegv": ("crashed", "the worker was ended by SIGSEGV"),
    "sigabrt": ("crashed", "the worker was ended by SIGABRT"),
    "memory": ("oom", "it was told to run out of memory"),
    "limit": ("oom", "MemoryError"),
}
"""By fault, the status of its row and how the reason begins."""

ENDED = [f"{fault}-{where}" for fault in ENDS for where in PLACES] if LONG else [
    "sigkill-latency", "sigsegv-loading", "limit-memory",
]  # fmt: skip
STUCK = [f"{fault}-{where}" for fault in ("sigstop", "hang") for where in PLACES] if LONG else ["hang-latency"]
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux has it
PATIENCE_S = (4.0, 16.0, 64.0)
"""Time limits, one after the other until a worker comes as far as it is to come: another process may hold it up."""


def test_a_worker_that_ends_badly_costs_its_own_row(place: Place, told: Callable[..., None]) -> None:
    place.measures(*ENDED, "exact", "one")

    assert place.run() == 1

    frame = place.frame().set_index("precision")
    assert {*frame.index} == {*ENDED, "exact", "one"}
    assert frame.status[["exact", "one"]].tolist() == ["ok", "ok"]
    for name in ENDED:
        status, reason = ENDS[name.partition("-")[0]]
        assert frame.status[name] == status
        assert frame.reason[name].startswith(reason)
    assert place.left() == []
    for name in ENDED:
        told(f"worker: {name.replace('-', ', ')}", 1, 1)


@pytest.fixture
def runner(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessRunner]:
    """An open engine that runs jobs of the place."""
    for name, value in {**place.environment, "FAULT_MARK": place.mark, "FAULT_NOTES": str(place.notes)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("quantbench.running.engines.process.needs_torch", lambda _: False)
    with open_process("cpu") as opened:
        assert isinstance(opened, ProcessRunner)
        yield opened


def job(place: Place, precision: str) -> Path:
    """The folder of a job that measures it."""
    (reference,) = (place.cache / "reference").iterdir()
    folder = place.folder / f"job-{len(list(place.folder.glob('job-*')))}"
    folder.mkdir()
    Job(
        kind="measure", checkpoint=resolve("canary"), variant=Variant(method="fault", precision=precision),
        conditions=Conditions(output_tokens=2, answer_tokens=2, continuation_tokens=2, threads=1), effort=PROFILES["quick"],
        tasks=(Task(prompts_name="two", prompts=prompts.load("two").prompts, reference=reference),),
    ).save(folder)  # fmt: skip
    return folder


def noted(place: Place) -> list[list[Any]]:
    """What workers have noted so far: their process ids, and what they had."""
    return [json.loads(line) for line in place.notes.read_text().splitlines()] if place.notes.exists() else []


def until_it_came_so_far(runner: ProcessRunner, place: Place, precision: str) -> Failure | None:
    """How a job ended that came as far as where it gets stuck."""
    fault = precision.partition("-")[0]
    for patience_s in PATIENCE_S:
        failure = runner.run(job(place, precision), patience_s)
        if any(words[0] == fault for _, *words in noted(place)):
            return failure
    return None


@pytest.mark.parametrize("precision", STUCK)
def test_of_a_worker_that_gets_stuck_nothing_is_left(
    precision: str, runner: ProcessRunner, place: Place, told: Callable[..., None]
) -> None:
    """Neither it, nor what it has started in a session of its own, nor a zombie, nor shared memory."""
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    failure = until_it_came_so_far(runner, place, precision)

    assert failure is not None
    assert failure.status is Status.TIMEOUT
    (server,) = (each for each in psutil.Process().children(recursive=True) if each.pid not in before)
    assert "quantbench.running.engines._fork_server" in server.cmdline()
    assert list(SHARED_MEMORY.glob(f"{place.mark}*")) == []
    runner.close()
    assert place.left() == []
    told(f"worker: {precision.replace('-', ', ')}", 1, 1)


def test_a_worker_dies_with_the_server_that_started_it(runner: ProcessRunner, place: Place, told: Callable[..., None]) -> None:
    before = set(psutil.Process().children())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(runner.run, job(place, "sigstop-loading"), 600)
        while not any(words[0] == "opened" for _, *words in noted(place)):
            if running.done():
                break
        for server in set(psutil.Process().children()) - before:
            server.send_signal(signal.SIGKILL)
        with pytest.raises(QuantbenchError, match="the fork server ended unexpectedly"):
            running.result()
    assert place.left() == []
    told("fork server: sigkill", 1, 1)
