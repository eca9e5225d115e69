"""How OpenMP's threads wait: a bounded spin, unless the user chose; and what the row says of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from quantbench.core.waiting import bounded, described


def test_a_worker_spins_for_a_bounded_time_unless_its_user_chose() -> None:
    assert bounded({"PATH": "/bin"}) == {"GOMP_SPINCOUNT": "30000"}
    assert bounded({"GOMP_SPINCOUNT": "7"}) == {}
    assert bounded({"OMP_WAIT_POLICY": "PASSIVE"}) == {}  # a count would overrule the policy


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"GOMP_SPINCOUNT": "30000"}, "spin 30000"),
        ({"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT=7 (user)"),
        ({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}, "OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 (user)"),
        ({}, "libgomp's default"),
    ],
)
def test_the_row_says_who_chose(environment: dict[str, str], said: str) -> None:
    assert described(environment) == said


def test_a_process_without_libgomp_says_nothing_of_it() -> None:
    code = "from quantbench.core.waiting import waiting; print(repr(waiting()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})

    assert done.stdout.strip() == "''"


def test_a_row_whose_threads_slept_beside_other_work_says_so() -> None:
    code = "import torch; from quantbench.core.waiting import waiting; print(waiting(rested=True)); print(waiting())"
    environment = {**os.environ, "GOMP_SPINCOUNT": "30000"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)

    assert done.stdout.splitlines() == ["spin 30000, 100 beside other work", "spin 30000"]


_COUNTED = """
import os, time
import torch
from quantbench.core.waiting import Rest

def threads(): return len(os.listdir("/proc/self/task"))
torch.set_num_threads(2)
left = torch.randn(400, 400)
expected = left @ left
before = threads()
with Rest(2) as rest:
    rest.begin()
    rest.begin()
    resting, same = threads(), bool((left @ left == expected).all())
    rest.end()
    still = rest.resting
ended = time.monotonic() + 20
while threads() > before and time.monotonic() < ended:  # a thread outlives its join by a moment
    time.sleep(0.01)
print(resting > before, same, still, threads() == before)
"""


def test_threads_rest_for_as_long_as_they_are_asked_to_and_figures_stay_the_same() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", _COUNTED], capture_output=True, text=True, check=True, env=environment)

    assert done.stdout.split() == ["True", "True", "False", "True"]


def test_what_its_user_chose_is_left_alone() -> None:
    code = "from quantbench.core.waiting import Rest; import torch; rest = Rest(2); rest.begin(); print(rest.resting)"
    environment = {**os.environ, "GOMP_SPINCOUNT": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)

    assert done.stdout.strip() == "False"
