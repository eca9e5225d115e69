"""What only a whole run shows to be disturbed."""

from __future__ import annotations

from dataclasses import replace

from quantbench.core.record import Record, Status
from quantbench.core.scenario import Conditions, Scenario, Variant
from quantbench.running.steadiness import unsteady

PRECISIONS = ("nf4", "fp4", "int8", "q8", "q4")


def row(precision: str, rate: float, *, method: str = "some", disturbed: bool = False, **values: float) -> Record:
    scenario = Scenario(
        model="canary", variant=Variant(method=method, precision=precision), prompts="two", conditions=Conditions()
    )
    return Record(
        scenario=scenario, scenario_key="", status=Status.OK, facts={"anchor": "torch/fp32"},
        values={"anchor_decode_tps": rate, "disturbed": disturbed, **values},
    )  # fmt: skip


def test_a_row_with_a_slow_anchor_is_disturbed_and_says_so() -> None:
    rows = [row(name, 100 + number) for number, name in enumerate(PRECISIONS)]
    slow = row("slow", 51)
    assert unsteady([*rows, slow]) == {slow.scenario: "its anchor ran at 50% of its speed beside other variants"}
    assert not unsteady(rows)
    assert not unsteady([*rows, replace(slow, values={**slow.values, "disturbed": True})])  # it is marked already


def test_anchors_that_differ_anyway_tell_nothing() -> None:
    assert not unsteady([row(name, rate) for name, rate in zip(PRECISIONS, (60, 80, 100, 130, 170), strict=True)])


def test_two_others_are_too_few_to_tell() -> None:
    assert not unsteady([row("nf4", 100), row("fp4", 100), row("slow", 20)])


def test_what_is_not_as_fast_as_itself_is_disturbed() -> None:
    reference = row("fp32", 100, method="torch", decode_ratio=2.21, decode_ratio_low=2.0, decode_ratio_high=2.4)
    assert unsteady([reference]) == {reference.scenario: "it ran at 221% of its own speed as anchor"}
    wide = replace(reference, values={**reference.values, "decode_ratio_low": 0.9})  # its own noise explains it
    assert not unsteady([wide])
    assert not unsteady([row("nf4", 100, decode_ratio=2.21)])  # another variant may be as fast as it likes
