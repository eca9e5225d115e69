"""How OpenMP's threads wait: a bounded spin, unless the user chose; and what the row says of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from quantbench.waiting import bounded, described


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
    code = "from quantbench.waiting import waiting; print(repr(waiting()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})

    assert done.stdout.strip() == "''"
