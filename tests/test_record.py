"""What counts as a failure, and what a record may hold."""

from __future__ import annotations

import dataclasses

import pytest

from quantbench.core.record import Missing, Record, Status
from quantbench.core.scenario import Scenario, Variant


def test_the_six_ways_a_scenario_ends() -> None:
    assert [str(status) for status in Status] == ["ok", "skipped", "oom", "timeout", "crashed", "error"]


def test_a_skip_is_no_failure() -> None:
    assert {status for status in Status if not status.failed} == {Status.OK, Status.SKIPPED}


def test_a_status_is_its_name() -> None:
    """So that it goes into JSON and parquet as it is."""
    assert Status("oom") == "oom" == f"{Status.OOM}"


def test_a_record_cannot_be_changed() -> None:
    scenario = Scenario(model="m", variant=Variant(method="torch", precision="fp32"), prompts="p")
    record = Record(scenario=scenario, scenario_key="k", status=Status.OK)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.status = Status.ERROR  # type: ignore[misc]


def test_a_missing_value_says_why() -> None:
    assert Missing("no GPU").reason == "no GPU"
    assert Missing("no GPU") != Missing("no driver")
