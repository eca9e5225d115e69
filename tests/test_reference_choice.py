"""What a model is compared with where nobody said: fp32 if it fits, else the best that does, and the plan says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantbench.models import config, dummy_configs
from quantbench.planning import planner, reference
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


def test_each_model_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For its scenarios and for the sentence about them."""
    looked: list[str] = []
    read = planner.read_architecture
    monkeypatch.setattr(planner, "read_architecture", lambda name, **how: looked.append(name) or read(name, **how))
    assert "is compared with torch/bf16" in planned(SEVEN, 20, monkeypatch).hints[-1]
    assert looked == [SEVEN]


@pytest.mark.parametrize("model", ["org/model", "dummy:org/model"])
def test_what_is_not_here_is_not_asked_for_over_a_network(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "download_config", lambda name, **_: pytest.fail(f"{name} was asked for"))
    found = planned(model, 0.001, monkeypatch)
    assert {each.conditions.reference for each in found.scenarios} == {"torch/fp32"}


def test_a_configuration_that_is_here_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(dummy_configs()["llama-2-7b"].read_text())
    for model in (f"dummy:{tmp_path}", f"dummy:{tmp_path / 'config.json'}", str(tmp_path)):
        found = planned(model, 20, monkeypatch)
        assert {each.conditions.reference for each in found.scenarios} == {"torch/bf16"}


def test_a_hub_configuration_that_was_downloaded_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    path = dummy_configs()["llama-2-7b"]
    monkeypatch.setattr(reference, "cached_config", lambda name: path if name == "org/seven" else None)
    monkeypatch.setattr(config, "download_config", lambda _, *, any_age: path if any_age else pytest.fail("asked the network"))
    for model, chosen in (("org/seven", "torch/bf16"), ("dummy:org/seven", "torch/bf16"), ("org/other", "torch/fp32")):
        assert {each.conditions.reference for each in planned(model, 20, monkeypatch).scenarios} == {chosen}
