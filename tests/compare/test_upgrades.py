"""Upgrades of libraries, from rows made here: which runs are compared, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from quantbench.judge.compare import Change
from quantbench.judge.compare.upgrades import Upgrade, upgrades

SLOWED, *OTHERS = (
    "canary/gguf-q8_0/ten", "canary/torch-bf16/ten", "canary/gguf-q4_k_m/ten", "canary/bitsandbytes-nf4/ten",
)  # fmt: skip
OLD, NEW = {"transformers": "5.22.0", "torch": "2.13.0"}, {"transformers": "5.23.0", "torch": "2.13.0"}


def runs(
    numbers: Sequence[int], versions: Mapping[str, str] = OLD, *, itl_s: Mapping[str, float] | None = None, **facts: Any
) -> pd.DataFrame:
    """Runs of one process for each scenario; speeds spread by about 1 % from run to run, seeded."""
    rows = []
    for number in numbers:
        for scenario in (SLOWED, *OTHERS):
            noise = np.random.default_rng([number, *scenario.encode()])
            gap = (itl_s or {}).get(scenario, 0.004) * (1 + noise.normal(0, 0.01))
            rows.append({
                "run_id": f"run-{number:02}", "run_number": number, "started_at": f"2026-01-{number:02}", "repeat": 0,
                "scenario_id": scenario, "scenario_key": "k", "schema_version": 3, "machine": "m", "kernel": "aten",
                "status": "ok", "reason": None, "versions": json.dumps(dict(versions)), "itl_s": gap,
                "itl_ratio": 0.008 * (1 + noise.normal(0, 0.005)) / gap, "kld_mean": 0.02,
                "peak_rss_bytes": 500_000_000 + number * 1000, **facts,
            })  # fmt: skip
    return pd.DataFrame(rows)


def found(*parts: pd.DataFrame, most: int = 5) -> list[Upgrade]:
    return upgrades(pd.concat(parts, ignore_index=True), most)


def verdicts(upgrade: Upgrade, metric: str) -> dict[str, Change]:
    return {each.scenario_id: each.verdict for each in upgrade.comparison.entries if each.metric == metric}


def test_what_an_upgrade_slowed_is_told_from_what_it_left_alone() -> None:
    (one,) = found(runs(range(1, 6)), runs(range(6, 16), NEW, itl_s={SLOWED: 0.004 * 1.2}))
    assert one.changes == {"transformers": ("5.22.0", "5.23.0")}
    assert verdicts(one, "decode") == {SLOWED: Change.WORSE, **dict.fromkeys(OTHERS, Change.SAME)}
    assert set(verdicts(one, "kld_mean").values()) == set(verdicts(one, "peak_rss_bytes").values()) == {Change.SAME}
    (slower,) = one.comparison.of(Change.WORSE)
    assert slower.change == pytest.approx(1 / 1.2 - 1, abs=0.02)
    assert set(one.rows) == {SLOWED, *OTHERS}


def test_a_bare_difference_of_two_runs_is_no_verdict() -> None:
    (one,) = found(runs([1]), runs([2], NEW, itl_s={SLOWED: 0.004 * 1.2}))
    assert set(verdicts(one, "decode").values()) == {Change.INSUFFICIENT}
    assert set(verdicts(one, "kld_mean").values()) == {Change.SAME}


@pytest.mark.parametrize(
    ("column", "value", "verdict"),
    [("kld_mean", 0.03, Change.WORSE), ("kld_mean", 0.0201, Change.SAME), ("peak_rss_bytes", 560_000_000, Change.WORSE)],
)
def test_figures_that_are_the_same_each_time_go_by_their_threshold(column: str, value: float, verdict: Change) -> None:
    (one,) = found(runs([1]), runs([2], NEW, **{column: value}))
    assert set(verdicts(one, column).values()) == {verdict}


def test_without_a_changed_version_there_is_none() -> None:
    assert found(runs([1])) == found(runs([1, 2, 3])) == []


def test_machines_are_never_connected() -> None:
    assert found(runs([1]), runs([2], NEW, machine="other")) == []
    (one,) = found(runs([1]), runs([2], NEW, machine="other"), runs([3], NEW), runs([4], OLD, machine="gone"))
    assert one.runs == (("run-01",), ("run-03",))


def test_what_was_asked_differently_says_so() -> None:
    (one,) = found(runs([1]), runs([2], NEW, scenario_key="another"))
    assert {each.verdict for each in one.comparison.entries} == {Change.INCOMPARABLE}
    assert all(each.reason.startswith("asked differently") for each in one.comparison.entries)


def test_a_library_that_a_run_does_not_name_has_not_changed() -> None:
    without = {"transformers": "5.22.0"}
    assert found(runs([1]), runs([2], without), runs([3])) == []
    (one,) = found(runs([1]), runs([2], without), runs([3], {**OLD, "torch": "2.14.0"}))
    assert one.changes == {"torch": ("2.13.0", "2.14.0")}
    assert one.runs == (("run-01", "run-02"), ("run-03",))


def test_the_runs_next_to_the_upgrade_are_compared() -> None:
    (one,) = found(runs(range(1, 16)), runs(range(16, 29), NEW))
    before, after = one.runs
    assert (before[0], before[-1], len(before)) == ("run-06", "run-15", 10)
    assert (after[0], after[-1], len(after)) == ("run-16", "run-25", 10)


def test_the_latest_come_first_and_runs_without_a_common_scenario_are_none() -> None:
    third = {**NEW, "torch": "2.14.0"}
    latest, earlier = found(runs([1]), runs([2], NEW), runs([3], third))
    assert (list(latest.changes), list(earlier.changes)) == (["torch"], ["transformers"])
    assert [each.changes for each in found(runs([1]), runs([2], NEW), runs([3], third), most=1)] == [latest.changes]
    assert found(runs([1]), runs([2], NEW).assign(scenario_id="canary/gguf-q2_k/ten")) == []
    assert found(runs([1], status="skipped"), runs([2], NEW, status="skipped")) == []
