"""A machine that is busy now and then: are the rows that it slowed marked, and does the pick stay?

    python bench/harness/run.py busy-marks busy-picks

Both read the same passes over a small matrix, by turns left alone and beside a busy loop that comes and goes;
QUANTBENCH_HARNESS_PASSES is how many of each.

When a row was timed is known without the instrument: a job's folder says when its last stage began. What the loop did is this
script's own log. A figure is the median of its rounds, so that work beside less than a third of them leaves it within the
quartiles of the others: a row counts as disturbed if the loop ran for a third of its timed window, or for less and its speed
is more than 10 % below the median of the passes left alone. The rows of passes left alone count as quiet; those beside the loop
that it happened to miss count nowhere: threads rest in a row, and it is marked, where the loop ran just before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import IO, TYPE_CHECKING

from ratios import CannotRunError, Result

from quantbench.core.job import STAGE_FILE

if TYPE_CHECKING:
    import numpy as np

    from quantbench.core.scenario import Scenario
    from quantbench.running.runner import Runner

PASSES = 10
VARIANTS = ("torch/fp32", "torch/bf16", "torch-dynamic/int8", "gguf/f16", "gguf/q8_0", "gguf/q4_k_m")
ON_S, OFF_S = (1.0, 6.0), (1.0, 6.0)
OVERLAP = 1 / 3
TICK_S = 0.01
SLOWED = 0.9

_LOOP = """
import os, select
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
on = False
while True:
    if not on or select.select([0], [], [], 0)[0]:
        said = os.read(0, 1)
        if not said:
            break
        on = said == b"1"
    for _ in range(10_000 if on else 0):
        pass
"""

Spans = list[tuple[float, float]]
"""When the loop was on, from and to, in seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A measured variant: the share of its timed window in which the loop ran, and for how many seconds that was."""

    variant: str
    overlap: float
    overlap_s: float
    decode_tps: float
    marked: bool


@dataclass(frozen=True, slots=True)
class Pass:
    """A matrix measured once: its rows, and the answer to what to ship."""

    rows: Sequence[Row]
    answer: str
    untold: bool


def marks() -> Iterator[Result]:
    """Of the rows that the loop slowed how many are marked, and of the others."""
    quiet, beside = measured(int(os.environ.get("QUANTBENCH_HARNESS_PASSES", PASSES)))
    usual = {name: median(row.decode_tps for each in quiet for row in each.rows if row.variant == name) for name in VARIANTS}
    rows = [row for each in (*quiet, *beside) for row in each.rows]
    left_alone = [row for each in quiet for row in each.rows]
    others = [row for row in rows if row.overlap_s >= TICK_S]
    long = [row for row in others if row.overlap >= OVERLAP]
    slowed = [row for row in others if row.overlap < OVERLAP and row.decode_tps < SLOWED * usual[row.variant]]
    for row in [*(each for each in (*long, *slowed) if not each.marked), *(each for each in left_alone if each.marked)]:
        speed = row.decode_tps / usual[row.variant]
        print(f"  {row.variant}: loop on for {row.overlap:.0%}, speed {speed:.2f}, marked: {row.marked}", file=sys.stderr)
    yield _share(f"disturbed rows marked ({len(long)} long, {len(slowed)} slowed)", [*long, *slowed], ">= 0.95")
    yield _share("rows left alone marked", left_alone, "<= 0.02")


def picks() -> Iterator[Result]:
    """How many answers are neither the pick of a machine left alone nor that it cannot be told."""
    quiet, beside = measured(int(os.environ.get("QUANTBENCH_HARNESS_PASSES", PASSES)))
    told = Counter(each.answer for each in quiet if not each.untold).most_common(1)
    if not told:
        raise CannotRunError("no pass left alone had a pick: other work ran beside all of them; leave the machine alone")
    wanted = told[0][0]
    for name, passes in (("left alone", quiet), ("beside a busy loop", beside)):
        same = sum(each.answer == wanted and not each.untold for each in passes)
        untold = sum(each.untold for each in passes)
        other = len(passes) - same - untold
        yield Result(f"other picks, {name}: {wanted}", f"{same} same", f"{untold} untold", other, "<= 0")


def _share(name: str, rows: Sequence[Row], limit: str) -> Result:
    if not rows:
        raise CannotRunError(f"there were no rows of {name!r}; ask for more passes with QUANTBENCH_HARNESS_PASSES")
    marked = sum(row.marked for row in rows)
    return Result(name, f"{marked}", f"of {len(rows)}", marked / len(rows), limit)


@cache
def measured(passes: int) -> tuple[list[Pass], list[Pass]]:
    """So many passes left alone and as many beside the loop, by turns, after one that warms the cache.

    All are of one run, so that libraries are imported once; each row has a process of its own, as ever.
    """
    from quantbench.core.machine import describe
    from quantbench.core.scenario import PROFILES
    from quantbench.planning.options import Plan
    from quantbench.results.store import Run, Store
    from quantbench.running.runner import Runner

    run = Run(machine=describe(), versions={}, command="harness", commit="", profile="quick", engine="process")
    found: tuple[list[Pass], list[Pass]] = ([], [])
    planned = [_scenarios(number) for number in range(1 + 2 * passes)]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        plan = Plan(
            scenarios=tuple(chain(*planned)), effort=PROFILES["quick"], engine="process", keep_jobs=place / "jobs"
        )
        with Runner(plan, Store(str(place / "results"), run)) as runner:
            _windows(runner, planned[0], place)
            for number in range(1, 1 + 2 * passes, 2):
                found[0].append(_read(place, number, _windows(runner, planned[number], place), []))
                with comes_and_goes(number) as spans:
                    windows = _windows(runner, planned[number + 1], place)
                found[1].append(_read(place, number + 1, windows, spans))
                print(f"  {number + 1} of {2 * passes} passes", file=sys.stderr, flush=True)
    return found


def _scenarios(number: int) -> list[Scenario]:
    from quantbench.core.scenario import Conditions, Scenario, Variant

    conditions = Conditions(answer_tokens=16, continuation_tokens=16)
    variants = [Variant(method=method, precision=precision) for method, precision in (each.split("/") for each in VARIANTS)]
    return [Scenario(model="canary", variant=each, prompts="ten", conditions=conditions, repeat=number) for each in variants]


def _windows(runner: Runner, scenarios: Sequence[Scenario], place: Path) -> dict[str, tuple[float, float]]:
    """Measure the matrix once; by variant when its rounds were timed, in seconds since the epoch."""
    windows = {}
    for scenario in scenarios:
        record, trace = runner.measure(scenario), runner.trace(scenario)
        if trace is None or "other_work" not in trace.signals:
            raise CannotRunError(f"{scenario.id}: {record.reason}")
        job = max((place / "jobs").glob(f"*/*-{scenario.variant.label}-measure"))  # they are numbered
        began = (job / STAGE_FILE).stat().st_mtime  # the last stage is that of the timed rounds
        windows[scenario.variant.name] = began, began + trace.signals["other_work"]["window_s"]
    return windows


def _read(place: Path, number: int, windows: Mapping[str, tuple[float, float]], spans: Spans) -> Pass:
    from quantbench.advice.decision import decide
    from quantbench.results.store import load

    frame = load(str(place / "results"))
    frame = frame[frame["repeat"] == number]
    rows = []
    for each, marked in zip(frame.itertuples(), frame["disturbed"].fillna(value=False), strict=True):
        began, ended = windows[f"{each.method}/{each.precision}"]
        on_s = sum(max(0.0, min(ended, last) - max(began, first)) for first, last in spans)
        rows.append(
            Row(
                variant=f"{each.method}/{each.precision}", overlap=on_s / (ended - began), overlap_s=on_s,
                decode_tps=float(each.decode_tps), marked=bool(marked),
            )
        )  # fmt: skip
    (choice,) = decide(frame)
    return Pass(rows, choice.pick.name if choice.pick else "none", bool(choice.undecided))


@contextmanager
def comes_and_goes(seed: int) -> Iterator[Spans]:
    """A busy loop that is on and off for seconds at random; when it was on is known at the end."""
    import numpy as np

    spans: Spans = []
    over = Event()
    with _loop() as switch:
        turns = Thread(target=_turns, args=(switch, np.random.default_rng(seed), over, spans))
        turns.start()
        try:
            yield spans
        finally:
            over.set()
            turns.join()


def _turns(switch: IO[bytes], rng: np.random.Generator, over: Event, spans: Spans) -> None:
    while not over.wait(rng.uniform(*OFF_S)):
        began = time.time()
        switch.write(b"1")
        over.wait(rng.uniform(*ON_S))
        switch.write(b"0")
        spans.append((began, time.time()))


@contextmanager
def _loop() -> Iterator[IO[bytes]]:
    """A process that spins after ``1`` and rests after ``0``, in a session of its own, so that it gets a fair share of a core.

    It is nobody's child here, or its work would count as the run's own; it ends when the pipe does, however this process ends.
    """
    starter = subprocess.Popen(
        [sys.executable, "-c", _LOOP], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    assert starter.stdin
    assert starter.stdout
    with starter.stdin as switch, starter.stdout as said:
        pid = int(said.readline())
        starter.wait()
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        if int(parent) == os.getpid():
            raise CannotRunError("orphans become children of this process; start it below another, as with docker run --init")
        yield switch
