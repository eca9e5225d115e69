"""A fleet that does not exist: 64 GPUs, 10,000 jobs, and machines that die.

    python bench/harness/run.py scale-fleet

Jobs are sent in the order of ``running/submission`` and placed by ``running/placing``. A timed job has its machine to itself.
The rows of a job are stored one by one; where its machine dies it is sent again, before all others, and
measures what is not stored yet. A job makes the reference of its model unless it is in the cache by then.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from random import Random
from typing import NamedTuple

from ratios import Result

from quantbench.running.placing import Need, Node, placed
from quantbench.running.submission import submission_order

JOBS, MODELS = 10_000, 20
DEATHS = 0.01
"""The share of jobs during which their machine dies."""

BACK_S = 120.0
"""Seconds until there is a machine in its place."""

TRIES = 3
"""As often is a job sent whose machine was lost each time; its rows then say so."""

SEEDS = (1, 2, 3)
_HEADS = 8
"""So many of each need are offered at a time: no more can start where one job has ended."""


class Job(NamedTuple):
    """A job: its need, the seconds that it is expected to take and takes indeed, its model, and the keys of its rows."""

    need: Need
    expected_s: float | None
    seconds: float
    model: int
    rows: tuple[str, ...]


class Work(NamedTuple):
    """Jobs, and the seconds that the reference of each model takes to make."""

    jobs: Sequence[Job]
    references: Sequence[float]


@dataclass(slots=True)
class Outcome:
    """What became of the jobs: seconds from start to end, the rows, and when machines died."""

    seconds: float = 0.0
    stored: Counter[str] = field(default_factory=Counter)
    """How often each row was stored."""
    given_up: set[str] = field(default_factory=set)
    deaths: list[float] = field(default_factory=list)
    lost_s: float = 0.0
    """Seconds of whole machines that went into rows which were not stored when the machine died."""

    def ideal_s(self, work: Work, nodes: Sequence[Node]) -> float:
        """Seconds that no order could beat: every machine always full with what fits, and nothing done twice.

        What a machine had in hand when it died is lost in any order, and counts.
        """
        down = sum(min(BACK_S, self.seconds - when) for when in self.deaths) / self.seconds
        shares = [_share(job.need, nodes[0]) for job in work.jobs]
        busy = sum(job.seconds * share for job, share in zip(work.jobs, shares, strict=True))
        return (busy + self.lost_s + sum(work.references) * min(shares)) / (len(nodes) - down)


def _share(need: Need, node: Node) -> float:
    """The part of a machine that a job takes."""
    return 1.0 if need.alone else need.gpus / node.gpus


def workload(rng: Random, *, jobs: int, models: int, timed: float) -> Work:
    """So many jobs, a share of them ``timed``, each of one to three rows, with a GPU each.

    Durations are log-normal with a median of 90 s, one in twenty above 5 min; estimates are off by a third, and one in twenty
    is missing.
    """
    made = []
    for number in range(jobs):
        seconds = rng.lognormvariate(4.5, 0.75)
        expected = None if rng.random() < 0.05 else seconds * rng.lognormvariate(0, 0.3)
        need = Need(cpus=1, gpus=1, alone=rng.random() < timed)
        rows = tuple(f"{number}/{prompts}" for prompts in range(rng.randint(1, 3)))
        made.append(Job(need, expected, seconds, number * models // jobs, rows))
    return Work(made, [rng.lognormvariate(4.5, 0.5) for _ in range(models)])


@dataclass(slots=True)
class _Try:
    """A job on a machine, with the rows that are still to be stored, and when it began with the first of these."""

    job: int
    node: Node
    rows: Sequence[str]
    since: float


class Fleet:
    """Carries out work on machines of one kind; ``deaths`` is the share of jobs during which their machine dies.

    ``shared`` tells whether machines have one cache, and each reference is made once, or one each.
    """

    def __init__(self, work: Work, nodes: Sequence[Node], rng: Random, *, deaths: float = 0.0, shared: bool = True) -> None:
        """Nothing is started yet."""
        self._work, self._nodes, self._rng = work, nodes, rng
        self._deaths, self._shared = deaths, shared
        self._queues: dict[Need, deque[int]] = {}
        self._places: dict[int, float] = {}
        self._running: dict[int, _Try] = {}
        self._up = {node.name: node for node in nodes}
        self._made: set[tuple[int, str]] = set()
        """The references that are made, by model and by the machine whose cache they are in."""
        self._tries: Counter[int] = Counter()
        self._events: list[tuple[float, int, str, _Try | Node]] = []
        self._number = count()
        self._outcome = Outcome()

    def run(self, order: Sequence[int]) -> Outcome:
        """Send the jobs in this order, and wait until the last one has ended."""
        for place, job in enumerate(order):
            self._places[job] = place
            self._queues.setdefault(self._work.jobs[job].need, deque()).append(job)
        now, left = 0.0, len(order)
        while left:
            self._start(now)
            now, _, kind, what = heapq.heappop(self._events)
            if isinstance(what, Node):
                self._up[what.name] = what
            elif self._running.get(what.job) is what:
                left -= self._happened(kind, what, now)
        self._outcome.seconds = now
        return self._outcome

    def _start(self, now: float) -> None:
        """Place what fits, by the engines' own function: it sees the first of each need, which is all that can start now."""
        while True:
            heads = sorted(
                (job for queue in self._queues.values() for job in islice(queue, _HEADS)), key=self._places.__getitem__
            )
            there: dict[str, list[Need]] = {}
            for each in self._running.values():
                there.setdefault(each.node.name, []).append(self._work.jobs[each.job].need)
            starts = placed([self._work.jobs[job].need for job in heads], list(self._up.values()), there)
            for index, node in starts:
                self._queues[self._work.jobs[heads[index]].need].remove(heads[index])
                self._begin(heads[index], node, now)
            if len(starts) < _HEADS:
                return

    def _begin(self, number: int, node: Node, now: float) -> None:
        job = self._work.jobs[number]
        rows = [row for row in job.rows if row not in self._outcome.stored]
        this = self._running[number] = _Try(number, node, rows, now)
        began = now if self._cache(this) in self._made else now + self._work.references[job.model]
        self._at(began, "made", this)
        share = job.seconds / len(job.rows)
        for index in range(len(rows)):
            self._at(began + share * (index + 1), "stored", this)
        ends = began + share * len(rows)
        self._at(ends, "ended", this)
        if self._rng.random() < self._deaths:
            self._at(now + (ends - now) * self._rng.random(), "died", this)

    def _cache(self, this: _Try) -> tuple[int, str]:
        return self._work.jobs[this.job].model, "" if self._shared else this.node.name

    def _at(self, when: float, kind: str, what: _Try | Node) -> None:
        heapq.heappush(self._events, (when, next(self._number), kind, what))

    def _happened(self, kind: str, this: _Try, now: float) -> int:
        """Take note of something that happened to a job; how many jobs it was the end of."""
        if kind == "made":
            self._made.add(self._cache(this))
        elif kind == "stored":
            row, *this.rows = this.rows
            this.since = now
            self._outcome.stored[row] += 1
        elif kind == "ended":
            del self._running[this.job]
            return 1
        else:
            return self._died(this.node, now)
        return 0

    def _died(self, node: Node, now: float) -> int:
        """The machine is gone with its jobs; how many of these are given up."""
        del self._up[node.name]
        self._outcome.deaths.append(now)
        self._at(now + BACK_S, "back", node)
        given_up = 0
        for each in [each for each in self._running.values() if each.node is node]:
            del self._running[each.job]
            self._outcome.lost_s += (now - each.since) * _share(self._work.jobs[each.job].need, node)
            self._tries[each.job] += 1
            if self._tries[each.job] < TRIES:
                self._places[each.job] = -next(self._number)
                self._queues[self._work.jobs[each.job].need].appendleft(each.job)
            else:
                given_up += 1
                self._outcome.given_up |= set(each.rows)
        return given_up


class Kind(NamedTuple):
    """A kind of fleet: how many machines with how many GPUs each, and the share of jobs that are timed."""

    name: str
    machines: int
    gpus: int
    timed: float

    @property
    def nodes(self) -> list[Node]:
        """The machines."""
        return [Node(name=f"{index}", cpus=8 * self.gpus, gpus=self.gpus) for index in range(self.machines)]


KINDS = (
    Kind("64 x 1 GPU, all timed", 64, 1, 1.0),
    Kind("8 x 8 GPUs, none timed", 8, 8, 0.0),
    Kind("8 x 8 GPUs, a tenth timed", 8, 8, 0.1),
    Kind("8 x 8 GPUs, all timed", 8, 8, 1.0),
)


def scale_fleet() -> Iterator[Result]:
    """Utilisation over the ideal, the worst of some seeds, beside jobs sent as planned; and rows that were lost."""
    for kind in KINDS:
        for deaths in (0.0, DEATHS):
            works = [workload(Random(seed), jobs=JOBS, models=MODELS, timed=kind.timed) for seed in SEEDS]  # noqa: S311
            ours = [_run(kind, work, submission_order(_told(work)), deaths=deaths) for work in works]
            planned = [_run(kind, work, range(JOBS), deaths=deaths) for work in works]
            lost = sum(lost_rows(work, found) for work, found in zip(works * 2, ours + planned, strict=True))
            shares = [_least(kind, works, found) for found in (ours, planned)]
            name = f"{kind.name}, {deaths:.0%} deaths" if deaths else kind.name
            yield Result(name, f"{shares[0]:.1%}", f"{shares[1]:.1%}", shares[0], ">= 0.95")
            yield Result("the same, rows lost", f"{lost}", f"{len(ours[0].deaths)} deaths", lost, "<= 0")
    apart = [_run(KINDS[0], work, submission_order(_told(work)), shared=False) for work in works]
    share = _least(KINDS[0], works, apart)
    yield Result(f"{KINDS[0].name}, a cache each", f"{share:.1%}", "", share, ">= 0")


def _told(work: Work) -> list[tuple[Need, float | None]]:
    return [(job.need, job.expected_s) for job in work.jobs]


def _run(kind: Kind, work: Work, order: Sequence[int], *, deaths: float = 0.0, shared: bool = True) -> Outcome:
    return Fleet(work, kind.nodes, Random(len(work.jobs)), deaths=deaths, shared=shared).run(order)  # noqa: S311


def _least(kind: Kind, works: Sequence[Work], outcomes: Sequence[Outcome]) -> float:
    """The least utilisation over the ideal."""
    return min(found.ideal_s(work, kind.nodes) / found.seconds for work, found in zip(works, outcomes, strict=True))


def lost_rows(work: Work, found: Outcome) -> int:
    """Rows that were planned and are neither stored nor told to be given up."""
    planned = {row for job in work.jobs for row in job.rows}
    return len(planned - set(found.stored) - found.given_up)
