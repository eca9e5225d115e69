"""Which job may start on which machine: rules, and that no schedule of them breaks one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.scenario import Conditions
from quantbench.running.placing import Need, Node, fits, need_of, placed

TIMED, SHARED = Need(cpus=1, gpus=0, alone=True), Need(cpus=2, gpus=0, alone=False)
ON_GPU = Need(cpus=1, gpus=1, alone=True)
SMALL, LARGE = Node(name="small", cpus=2, gpus=0), Node(name="large", cpus=4, gpus=0)
WITH_GPUS = Node(name="gpu", cpus=8, gpus=2)


def where(waiting: list[Need], *nodes: Node, **running: list[Need]) -> list[tuple[int, str]]:
    """The placements, with the names of machines."""
    return [(index, node.name) for index, node in placed(waiting, nodes, running)]


def test_a_machine_times_one_job_at_a_time() -> None:
    assert where([TIMED] * 3, SMALL, LARGE) == [(0, "small"), (1, "large")]
    assert where([TIMED], SMALL, LARGE, small=[TIMED]) == [(0, "large")]
    assert where([ON_GPU, ON_GPU], WITH_GPUS) == [(0, "gpu")]  # although it has another GPU


def test_nothing_is_timed_beside_anything_else() -> None:
    assert where([TIMED], LARGE, large=[SHARED]) == []
    assert where([SHARED], LARGE, large=[TIMED]) == []


def test_what_times_nothing_shares_a_machine_as_far_as_it_reaches() -> None:
    assert where([SHARED] * 4, SMALL, LARGE) == [(0, "small"), (1, "large"), (2, "large")]
    on_gpu = Need(cpus=1, gpus=1, alone=False)
    assert where([on_gpu] * 3, WITH_GPUS) == [(0, "gpu"), (1, "gpu")]


def test_gpus_are_left_to_those_that_need_them() -> None:
    assert where([TIMED, ON_GPU], WITH_GPUS, SMALL) == [(0, "small"), (1, "gpu")]
    assert where([ON_GPU, TIMED], SMALL, WITH_GPUS) == [(0, "gpu"), (1, "small")]


def test_one_that_fits_nowhere_does_not_hold_up_the_others() -> None:
    assert where([ON_GPU, Need(cpus=99, gpus=0, alone=True), TIMED], SMALL) == [(2, "small")]


def test_what_a_job_takes_follows_from_what_it_does() -> None:
    assert need_of(Conditions(), timed=True) == Need(cpus=1, gpus=0, alone=True)
    assert need_of(Conditions(), timed=False).alone  # it uses every core
    assert need_of(Conditions(threads=4), timed=False) == Need(cpus=4, gpus=0, alone=False)
    assert need_of(Conditions(device="cuda"), timed=False) == Need(cpus=1, gpus=1, alone=False)
    assert need_of(Conditions(device="cuda"), timed=True) == ON_GPU


NEEDS = st.builds(Need, cpus=st.integers(1, 4), gpus=st.integers(0, 1), alone=st.booleans())
SIZES = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=4)


@given(st.lists(NEEDS, max_size=12), SIZES)
def test_no_machine_gives_more_than_it_has_and_nothing_waits_that_could_run(
    waiting: list[Need], sizes: list[tuple[int, int]]
) -> None:
    nodes = [Node(name=str(index), cpus=cpus, gpus=gpus) for index, (cpus, gpus) in enumerate(sizes)]
    starts = placed(waiting, nodes, {})
    there: dict[str, list[Need]] = {node.name: [] for node in nodes}
    for index, node in starts:
        there[node.name].append(waiting[index])
    for node in nodes:
        jobs = there[node.name]
        assert len(jobs) < 2 or not any(job.alone for job in jobs)
        assert sum(job.cpus for job in jobs) <= node.cpus
        assert sum(job.gpus for job in jobs) <= node.gpus
    left = [need for index, need in enumerate(waiting) if index not in {start for start, _ in starts}]
    assert not any(fits(need, node, there[node.name]) for need in left for node in nodes)
