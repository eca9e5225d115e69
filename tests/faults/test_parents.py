"""A run that is ended at any moment, and again after it was resumed, has in the end the rows of one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import pytest

if TYPE_CHECKING:
    from conftest import Place

LONG = os.environ.get("QUANTBENCH_FAULTS", "") == "all"
MEASURED = ("exact", "one", "two", "three", "four", "five") if LONG else ("exact", "one", "two")
CHAINS = 17 if LONG else 1
"""Of three moments each, of which two are after the first stored row."""

SAME = ("scenario_key", "status", "kld_mean", "top1_agreement", "ppl", "weight_bytes", "kernel", "threads", "context")
"""Columns that are the same however often it is measured."""

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Moment:
    """A signal, to the run's first process or to all of them, ``delay_s`` after so many rows have been stored."""

    number: signal.Signals
    everyone: bool
    rows: int
    delay_s: float


def chains() -> list[tuple[Moment, ...]]:
    """Moments by chance, the same always."""
    chance = random.Random(19)  # noqa: S311 - no secret
    kinds = [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGTERM, True)]
    late = [(1, len(MEASURED) // 2), (len(MEASURED) // 2, len(MEASURED) - 1)]
    found = []
    for chain in range(CHAINS):
        at = [(0, chance.uniform(0.0, 4.0)), *((chance.randint(*bounds), chance.uniform(0.0, 0.5)) for bounds in late)]
        found.append(tuple(Moment(*kinds[(chain + index) % len(kinds)], *each) for index, each in enumerate(at)))
    return found


def stored(place: Place) -> int:
    return len(list(place.results.glob("scenarios/*/*.parquet")))


def going_on(place: Place) -> list[str]:
    """The option that resumes the run, if it had begun."""
    return ["--resume=last"] if any(place.results.glob("runs/*/*.parquet")) else []


def ended_at(moment: Moment, place: Place) -> int | None:
    """The exit code of a run that was ended at that moment; None where it had ended by itself before."""
    run = place.start(*going_on(place))
    while run.poll() is None and stored(place) < moment.rows:
        time.sleep(0.005)
    time.sleep(moment.delay_s)
    if run.poll() is not None:
        return None
    for process in place.processes() if moment.everyone else [run]:
        process.send_signal(moment.number)
    return run.wait(60)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """The rows of the run that was left alone, made by the first test that needs them."""
    return {}


def rows(place: Place) -> pd.DataFrame:
    return place.frame().set_index(["scenario_id", "repeat"]).sort_index()


@pytest.mark.parametrize("chain", chains(), ids=lambda chain: "-".join(f"{each.number.name}{each.rows}" for each in chain))
def test_resumed_runs_have_the_rows_of_one_that_was_left_alone(
    chain: tuple[Moment, ...], new_place: Callable[..., Place], whole: dict[str, pd.DataFrame], told: Callable[..., None]
) -> None:
    if not whole:
        alone = new_place("alone")
        alone.measures(*MEASURED)
        assert alone.run() == 0, alone.said
        whole["rows"] = rows(alone)
    place = new_place("ended")
    place.measures(*MEASURED)
    injected = []
    for moment in chain:
        code = ended_at(moment, place)
        if code is None:
            continue
        injected.append(moment)
        assert "Traceback" not in place.said
        assert [each for each in place.left() if each.startswith("process")] == []
        if moment.number is signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code in (INTERRUPTED, -moment.number), place.said  # the latter while Python starts
            assert place.left() == []
        if code == INTERRUPTED and going_on(place):
            assert place.frame("runs").interrupted.tolist() == [True]

    assert place.run(*going_on(place)) == 0, place.said

    assert place.left() == []
    found = rows(place)
    for name in SAME:
        pd.testing.assert_series_equal(found[name], whole["rows"][name])
    assert len(place.rows()) == len(MEASURED)
    (run,) = place.frame("runs").to_dict("records")
    assert (run["planned"], run["finished"], run["ok"], run["interrupted"]) == (len(MEASURED), len(MEASURED), len(MEASURED), False)
    for moment in injected:
        to = "all processes" if moment.everyone else "parent"
        after = "after the first row" if moment.rows else "before the first row"
        told(f"{to}: {moment.number.name.lower()} {after}", len(MEASURED), len(found))
