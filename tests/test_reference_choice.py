"""What a model is compared with where nobody said: fp32 if it fits, else the best that does, and the plan says why."""

from __future__ import annotations

import pytest

from quantbench.planning import planner
from quantbench.planning.options import OPTIONS, Plan, RunOptions, plan

SEVEN = "dummy:llama-2-7b"
"""6.74 B parameters: 27 GB in fp32, 13.5 GB in bf16, 7.2 GB as Q8_0."""


def planned(model: str, room_gb: float, monkeypatch: pytest.MonkeyPatch, **given: str) -> Plan:
    device = planner.Device(name="this machine", memory_bytes=int(room_gb * 1e9))
    monkeypatch.setattr(planner, "device_here", lambda _: device)
    asked = {"model": model, "method": "gguf", "precision": "q4_k_m", "prompts": "two", **given}
    return plan(RunOptions.read(lambda option: asked.get(option.name, option.default)))


@pytest.mark.parametrize(
    ("room_gb", "reference"), [(40, "torch/fp32"), (20, "torch/bf16"), (9, "gguf/q8_0"), (2, "torch/fp32")]
)
def test_the_reference_is_the_most_exact_that_fits(
    room_gb: float, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planned(SEVEN, room_gb, monkeypatch)

    assert {each.conditions.reference for each in found.scenarios} == {reference}
    told = [each for each in found.hints if "is compared with" in each]
    assert len(told) == (reference != "torch/fp32")
    assert all(f"llama-2-7b is compared with {reference}: torch/fp32" in each for each in told)


def test_a_reference_that_was_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "reference" in {option.name for option in OPTIONS}
    found = planned(SEVEN, 20, monkeypatch, reference="torch/fp32")

    assert {each.conditions.reference for each in found.scenarios} == {"torch/fp32"}
    assert not any("is compared with" in each for each in found.hints)


def test_what_always_fits_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {each.conditions.reference for each in planned("canary", 0.001, monkeypatch).scenarios} == {"torch/fp32"}
