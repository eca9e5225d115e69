"""A run that is ended at any moment, and again after it was resumed, has in the end the rows of one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import psutil
import pytest

if TYPE_CHECKING:
    from conftest import Place

LONG = os.environ.get("QUANTBENCH_FAULTS", "") == "all"
MEASURED = ("exact", "one", "two", "three", "four", "five")[: 6 if LONG else 3]
CHAINS = 17 if LONG else 1
"""Of three moments each, of which two are after the first stored row."""

SAME = ("scenario_key", "status", "kld_mean", "top1_agreement", "ppl", "weight_bytes", "kernel", "threads", "context")
"""Columns that are the same however often it is measured."""

INTERRUPTED = {"quantbench": 130, "pytest": int(pytest.ExitCode.INTERRUPTED)}
"""The exit code of a run that was interrupted, by face."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A signal, to the run's first process or to all of them, ``delay_s`` after so many rows are stored, the last just now."""

    number: signal.Signals
    everyone: bool
    rows: int
    delay_s: float


@pytest.fixture(autouse=True)
def _heeded_hangups() -> Iterator[None]:
    """Under nohup what these tests start would ignore SIGHUP, as it should, and none of it would be tried."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def chains() -> list[tuple[str, tuple[Moment, ...]]]:
    """Faces and moments by chance, the same always."""
    chance = random.Random(19)  # noqa: S311 - no secret
    kinds = [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGTERM, True)]
    late = [(1, len(MEASURED) // 2), (len(MEASURED) // 2, len(MEASURED) - 1)]
    found = []
    for chain in range(CHAINS):
        at = [(0, chance.uniform(0.0, 4.0)), *((chance.randint(*bounds), chance.uniform(0.0, 0.5)) for bounds in late)]
        moments = tuple(Moment(*kinds[(chain + index) % len(kinds)], *each) for index, each in enumerate(at))
        found.append((("quantbench", "pytest")[chain // 2 % 2], moments))
    return found


def stored(place: Place) -> int:
    return len(list(place.results.glob("scenarios/*/*.parquet")))


def going_on(place: Place) -> list[str]:
    """The option that resumes the run, if it had begun."""
    return ["resume=last"] if any(place.results.glob("runs/*/*.parquet")) else []


def ended_at(moment: Moment, place: Place, face: str) -> int | None:
    """The exit code of a run that was ended at that moment; None where it had ended by itself before."""
    rows = max(moment.rows, stored(place) + 1) if moment.rows else 0
    run = place.start(*going_on(place), face=face)
    while run.poll() is None and stored(place) < rows:
        time.sleep(0.005)
    time.sleep(moment.delay_s)
    if run.poll() is not None:
        return None
    for process in place.processes() if moment.everyone else [run]:
        with suppress(psutil.Error):  # it may just have ended
            process.send_signal(moment.number)
    return run.wait(60)


def rows(place: Place) -> pd.DataFrame:
    return place.frame().set_index(["scenario_id", "repeat"]).sort_index()


@pytest.mark.parametrize(("face", "moments"), chains())
def test_resumed_runs_have_the_rows_of_one_that_was_left_alone(
    face: str, moments: tuple[Moment, ...], place: Place, alone: Place, told: Callable[..., None]
) -> None:
    place.measures(*MEASURED)
    injected = []
    for moment in moments:
        code = ended_at(moment, place, face)
        if code is None or (code == 0 and stored(place) == len(MEASURED)):  # the signal came when all was done
            continue
        injected.append(moment)
        assert "Traceback" not in place.said
        assert [each for each in place.left() if each.startswith("process")] == []
        if moment.number is signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code in (INTERRUPTED[face], -moment.number), place.said  # the latter while Python starts
            assert place.left() == []
        if going_on(place) and stored(place) < len(MEASURED):
            assert place.frame("runs").interrupted.tolist() == [True]

    assert place.run(*going_on(place), face=face) == 0, place.said

    assert place.left() == []
    found, wanted = rows(place), rows(alone)
    for name in SAME:
        pd.testing.assert_series_equal(found[name], wanted[name])
    assert len(place.rows()) == len(MEASURED)
    (run,) = place.frame("runs").to_dict("records")
    assert [run[name] for name in ("planned", "finished", "ok", "interrupted")] == [*[len(MEASURED)] * 3, False]
    for moment in injected:
        to = "all processes" if moment.everyone else "parent"
        after = "after the first row" if moment.rows else "before the first row"
        told(f"{to}: {moment.number.name.lower()} {after}", len(MEASURED), len(found))
