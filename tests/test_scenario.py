"""Scenario ids and keys: what changes a measurement changes the key, and nothing else does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.errors import UsageError
from quantbench.core.scenario import PROFILES, Conditions, Scenario, Variant, prompt_tokens, short_name

SCENARIO = Scenario(model="canary", variant=Variant(method="gguf", precision="q4_k_m"), prompts="ten")
IDENTITY = {"content": "c0ffee", "revision": "built-in", "prompts": "beef"}

conditions = st.builds(
    Conditions,
    reference=st.sampled_from(["torch/fp32", "torch/bf16", "gguf/f16"]),
    device=st.sampled_from(["cpu", "cuda", "cuda:1"]),
    threads=st.integers(0, 64),
    context=st.integers(0, 4096),
    output_tokens=st.integers(2, 256),
    answer_tokens=st.integers(2, 256),
    continuation_tokens=st.integers(2, 256),
    seed=st.integers(0, 2**31),
    decode_path=st.sampled_from(["", "eager", "static", "compiled"]),
)
names = st.text("abcdefgh-_.0123456789", min_size=1, max_size=12)
variants = st.builds(Variant, method=names, precision=names, control=st.booleans())
scenarios = st.builds(Scenario, model=names, variant=variants, prompts=names, conditions=conditions)


def test_id_is_model_variant_and_prompts() -> None:
    assert SCENARIO.id == "canary/gguf-q4_k_m/ten"


def test_a_controls_id_says_so() -> None:
    control = replace(SCENARIO, variant=Variant(method="torch", precision="fp32", control=True))
    assert control.id == "canary/torch-fp32-control/ten"
    assert not control.is_reference


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("canary", "canary"),
        ("org/model", "org/model"),
        ("org/model@v1.0", "org/model@v1.0"),
        ("./models/tiny", "tiny"),
        ("../tiny/", "tiny"),
        ("/data/tiny", "tiny"),
        ("~/tiny", "tiny"),
        ("/data/tiny-f16.gguf", "tiny-f16"),
        ("tiny-f16.gguf", "tiny-f16"),
        ("my prompts.txt", "my prompts"),
        ("org/model@2", "org/model@2"),
    ],
)
def test_ids_show_names_as_they_are_and_of_a_path_its_last_part(name: str, shown: str) -> None:
    assert short_name(name) == shown


def test_a_model_in_the_current_folder_still_has_a_name() -> None:
    assert short_name(".") != ""


def test_the_reference_is_the_unquantized_scenario_of_the_same_model_and_prompts() -> None:
    reference = SCENARIO.reference()
    assert (reference.id, reference.conditions) == ("canary/torch-fp32/ten", SCENARIO.conditions)
    assert reference.is_reference
    assert not SCENARIO.is_reference
    assert reference.reference() == reference


def test_prompt_sets_of_one_variant_share_a_job() -> None:
    assert SCENARIO.job == replace(SCENARIO, prompts="two").job
    assert SCENARIO.job != replace(SCENARIO, variant=Variant(method="gguf", precision="q8_0")).job
    assert SCENARIO.job != replace(SCENARIO, conditions=Conditions(seed=1)).job


@given(scenarios, conditions)
def test_the_key_changes_with_each_condition(scenario: Scenario, other: Conditions) -> None:
    for each in fields(Conditions):
        value = getattr(other, each.name)
        changed = replace(scenario, conditions=replace(scenario.conditions, **{each.name: value}))
        same = value == getattr(scenario.conditions, each.name)
        assert (changed.key(IDENTITY) == scenario.key(IDENTITY)) == same, each.name


@given(scenarios, scenarios)
def test_equal_keys_are_equal_variants_and_conditions_whatever_the_content_is_called(one: Scenario, other: Scenario) -> None:
    same = (one.variant, one.conditions) == (other.variant, other.conditions)
    assert (one.key(IDENTITY) == other.key(IDENTITY)) == same


@pytest.mark.parametrize("name", list(IDENTITY))
def test_the_key_changes_with_the_content_behind_each_name(name: str) -> None:
    assert SCENARIO.key(IDENTITY) != SCENARIO.key({**IDENTITY, name: "other"})


def test_the_key_tells_a_control_from_its_reference() -> None:
    reference = SCENARIO.reference()
    control = replace(reference, variant=replace(reference.variant, control=True))
    assert reference.key(IDENTITY) != control.key(IDENTITY)


def test_the_key_is_the_same_in_another_process_and_in_another_order() -> None:
    """Hash randomization and the order of the identity's entries leave no trace."""
    script = (
        "from quantbench.core.scenario import Scenario, Variant\n"
        "s = Scenario(model='canary', variant=Variant(method='gguf', precision='q4_k_m'), prompts='ten')\n"
        f"print(s.key({dict(reversed(IDENTITY.items()))!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == SCENARIO.key(IDENTITY)
    assert len(SCENARIO.key(IDENTITY)) == 64


@pytest.mark.parametrize("name", ["output_tokens", "answer_tokens", "continuation_tokens"])
def test_one_token_leaves_no_gap_to_time(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^{name} is 1; ask for at least 2 tokens"):
        Conditions(**{name: 1})


@pytest.mark.parametrize("name", ["threads", "context", "seed"])
def test_negative_conditions_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^{name} is -1; it cannot be negative$"):
        Conditions(**{name: -1})


@pytest.mark.parametrize("device", ["gpu", "", "CUDA", "cudaa", "cuda:", "cuda:x", "cuda:-1"])
def test_unknown_devices_are_refused(device: str) -> None:
    with pytest.raises(UsageError) as caught:
        Conditions(device=device)
    assert str(caught.value) == f"device {device!r} is not known; use cpu, cuda or cuda:N"


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:7"])
def test_known_devices_are_accepted(device: str) -> None:
    assert Conditions(device=device).device == device


def test_profiles_try_harder_in_their_order() -> None:
    quick, default, thorough = (PROFILES[name] for name in ("quick", "default", "thorough"))
    for name in ("min_rounds", "max_rounds", "budget_s"):
        assert getattr(quick, name) < getattr(default, name) < getattr(thorough, name)
    for profile in PROFILES.values():
        assert 1 <= profile.min_rounds <= profile.max_rounds
        assert profile.budget_s < profile.timeout_s


def test_a_batch_is_compared_with_what_the_reference_says_one_by_one() -> None:
    several = replace(SCENARIO, batch=8)
    assert several.id == f"{SCENARIO.id}@8"
    assert replace(several, prompts="/data/my prompts.txt").id.endswith("/my prompts@8")
    assert several.reference() == SCENARIO.reference()
    assert several.key(IDENTITY) == SCENARIO.key(IDENTITY)  # the batch is in the identity of the prompts


@pytest.mark.parametrize(
    ("name", "length"), [("tokens:512", 512), ("ten", 0), ("tokens:x", 0)]
)
def test_a_name_says_the_length_of_its_prompts_or_nothing(name: str, length: int) -> None:
    assert prompt_tokens(name) == length
