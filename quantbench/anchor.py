"""The anchor: what a variant's rounds alternate with, in the same process and runtime.

It is the model's own unquantized form in that runtime where both fit, else the canary's: either way the same work is timed
beside every variant, and the ratio of the two is what survives the machine's mood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantbench.errors import QuantbenchError
from quantbench.job import Checkpoint
from quantbench.machine import available_memory
from quantbench.methods import METHODS, Settings
from quantbench.models import _checkpoint as checkpoints
from quantbench.scenario import Scenario

_MEMORY_SHARE = 0.4
"""The anchor may take this much of the memory that is free."""

_CANARY = "canary"
_CANARY_VOCABULARY = 2048
_CANARY_PROMPT_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """Which variant of which model, and how it is opened. ``name`` is stored: ``torch/fp32``, or ``canary torch/fp32``."""

    name: str
    scenario: Scenario
    settings: Settings
    stands_in: bool = False

    def prompts(self, prompts: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """The prompts as the anchor can read them: a canary that stands in gets ids of its own, as many or fewer."""
        if not self.stands_in:
            return prompts
        return [[token % _CANARY_VOCABULARY for token in prompt[:_CANARY_PROMPT_TOKENS]] for prompt in prompts]


def choose(scenario: Scenario, settings: Settings) -> Anchor | None:
    """The anchor for a variant, its artifact made if the method needs one; None where not even the canary can be had."""
    method, _, precision = METHODS[scenario.variant.method].anchor.partition("/")
    variant = replace(scenario.variant, method=method, precision=precision, control=False)
    own = Anchor(name=variant.name, scenario=replace(scenario, variant=variant), settings=settings)
    is_variant = variant == replace(scenario.variant, control=False)
    if settings.checkpoint.kind == "module":  # the canary reads tokens: it cannot stand in
        return own if _prepared(own) else None
    if is_variant or (_fits(settings.checkpoint, precision, method) and _prepared(own)):
        return own
    canary = replace(settings, checkpoint=checkpoints.resolve(_CANARY))
    other = Anchor(
        name=f"{_CANARY} {variant.name}", scenario=replace(own.scenario, model=_CANARY), settings=canary, stands_in=True
    )
    return other if _prepared(other) else None


def _fits(checkpoint: Checkpoint, precision: str, method: str) -> bool:
    needed = checkpoints.count_parameters(checkpoint) * (METHODS[method].precision(precision).bits or 32) / 8
    return needed <= _MEMORY_SHARE * available_memory()


def _prepared(anchor: Anchor) -> bool:
    method = METHODS[anchor.scenario.variant.method]
    try:
        method.check(anchor.settings.checkpoint)
        if method.preparer:
            method.preparer(anchor.scenario, anchor.settings)
    except QuantbenchError:  # an anchor is a help: without one there is no ratio, but all else
        return False
    return True
