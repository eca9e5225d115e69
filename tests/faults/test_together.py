"""Many runs at once on one cache and one folder of results."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Place

LONG = os.environ.get("QUANTBENCH_FAULTS", "") == "all"
RUNS = 20 if LONG else 2


def test_each_has_its_rows_and_the_reference_is_made_well(new_place: Callable[..., Place], told: Callable[..., None]) -> None:
    place = new_place("cold", cold=LONG)  # making a reference takes long
    place.measures("exact", "one")

    runs = [place.start_inline() for _ in range(RUNS)]

    assert [run.wait(1200) for run in runs] == [0] * RUNS
    frame, samples, kept = (place.frame(name) for name in ("scenarios", "samples", "runs"))
    assert sorted(frame.groupby("run_id").precision.apply(sorted).map(tuple)) == [("exact", "one")] * RUNS
    assert frame.status.eq("ok").all()
    assert frame.groupby("precision").kld_mean.nunique(dropna=False).tolist() == [1, 1]
    assert samples.groupby(["run_id", "scenario_id"]).ngroups == 2 * RUNS
    assert kept.interrupted.tolist() == [False] * RUNS
    assert len(list((place.cache / "reference").iterdir())) == 1
    assert place.left() == []
    told(f"{RUNS} runs at once", 2 * RUNS, len(frame))
