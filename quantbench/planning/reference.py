"""What a model's variants are compared with where nobody said: fp32 where it fits, else the most exact variant that does."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantbench.core.outside import exists, expanded
from quantbench.core.scenario import DUMMY_PREFIX, Conditions, Scenario, Variant, short_name
from quantbench.models import MODELS, dummy_configs, is_hub_id
from quantbench.models.hub import cached_config
from quantbench.planning.outlook import Outlooks

CANDIDATES = ("torch/fp32", "torch/bf16", "gguf/q8_0")
"""The most exact first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The variant that a model's others are compared with, and why it is not fp32 (empty if it is, or if nothing fits)."""

    reference: str
    why: str = ""


def best_that_fits(model: str, prompts: str, conditions: Conditions) -> Compared:
    """The first of CANDIDATES that has room on the device with the answers to a prompt set; fp32 where none has.

    Of models of unknown size, and of those whose configuration would have to be asked for over a network, it is fp32: where
    there is no room for it the row says so, and the next run, which has the configuration, chooses. Families that
    only transformers can count are counted in a child process, once.
    """
    usual = Compared(reference=CANDIDATES[0])
    if model in MODELS or not _is_here(model):
        return usual
    outlooks, refused = Outlooks(), ""
    for name in CANDIDATES:
        method, _, precision = name.partition("/")
        asked = replace(conditions, reference=name)
        scenario = Scenario(model=model, variant=Variant(method=method, precision=precision), prompts=prompts, conditions=asked)
        refusal = outlooks.by_name(scenario).refusal
        if not refusal:
            why = f"{short_name(model)} is compared with {name}: {refused}" if refused else ""
            return Compared(reference=name, why=why)
        refused = refused or refusal
    return usual


def _is_here(model: str) -> bool:
    """Whether its configuration is on this machine: that of a hub id once it was downloaded, in the hub's own cache."""
    name = model.removeprefix(DUMMY_PREFIX)
    if name in dummy_configs() or exists(expanded(name)):
        return True
    return is_hub_id(name) and cached_config(name) is not None
