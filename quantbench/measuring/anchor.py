"""The anchor: the model whose rounds alternate with a variant's, in the same process and runtime.

It is the model's own unquantized form in that runtime where both fit, else the canary's: either way the same work is timed
beside every variant, so the ratio of the two stays comparable when the machine's speed varies.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantbench.core.boards import open_boards
from quantbench.core.errors import QuantbenchError
from quantbench.core.job import Checkpoint
from quantbench.core.machine import available_memory
from quantbench.core.scenario import Spec, Variant, baseline
from quantbench.methods import METHODS, Settings
from quantbench.models import checkpoint as checkpoints
from quantbench.planning import planner
from quantbench.runtimes.transformers.devices import gpus_of

_MEMORY_SHARE = 0.4
"""The anchor's weights may take at most this share of the host's free memory."""

_PEAK_SHARE = 0.9
"""The anchor's peak, its cache included, may take at most this share of the free memory, on a GPU or the host."""

_CANARY = "canary"
_CANARY_VOCABULARY = 2048
_CANARY_PROMPT_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """The anchor's model and variant, and how to open it. ``name`` is stored: ``torch/fp32``, or ``canary torch/fp32``."""

    name: str
    spec: Spec
    settings: Settings
    stands_in: bool = False

    def prompts(self, prompts: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """The prompts as the anchor can read them: a canary that stands in gets ids of its own vocabulary, at most as many."""
        if not self.stands_in:
            return prompts
        return [[token % _CANARY_VOCABULARY for token in prompt[:_CANARY_PROMPT_TOKENS]] for prompt in prompts]


def choose(spec: Spec, settings: Settings, original: Checkpoint | None = None) -> Anchor | None:
    """The anchor for a variant, its artifact made if the method needs one; None where not even the canary is available.

    Where the variant is a published artifact, the anchor is made from the ``original``.
    """
    usual = METHODS[spec.variant.method].anchor
    method, _, precision = baseline(usual, spec.conditions.device).partition("/")
    variant = Variant(method=method, precision=precision)
    source = original or settings.checkpoint
    conditions = replace(spec.conditions, n_gpu_layers="")  # the same work beside every variant
    own = Anchor(
        name=variant.name, spec=replace(spec, model=source.name, variant=variant, conditions=conditions),
        settings=replace(settings, checkpoint=source),
    )  # fmt: skip
    is_variant = variant == replace(spec.variant, control=False)
    if settings.checkpoint.kind == "module":  # the canary reads tokens: it cannot stand in
        return own if _prepared(own) else None
    if is_variant or (_fits(own) and _prepared(own)):
        return own
    canary = replace(settings, checkpoint=checkpoints.resolve(_CANARY))
    other = Anchor(
        name=f"{_CANARY} {variant.name}", spec=replace(own.spec, model=_CANARY), settings=canary, stands_in=True
    )
    return other if _prepared(other) else None


def _fits(anchor: Anchor) -> bool:
    """Whether it fits in memory beside what is loaded already."""
    variant, device = anchor.spec.variant, anchor.spec.conditions.device
    bits = METHODS[variant.method].precision(variant.precision).bits or 32
    weights = checkpoints.count_parameters(anchor.settings.checkpoint) * bits / 8
    if device == "cpu":
        free = available_memory()
        return weights <= _MEMORY_SHARE * free and _peak_bytes(anchor) <= _PEAK_SHARE * free
    return max(weights, _peak_bytes(anchor)) <= _PEAK_SHARE * _free_on_gpus(device)


def _peak_bytes(anchor: Anchor) -> int:
    """Forecast bytes of its weights, keys, values and activations; 0 where there is no forecast."""
    variant, settings = anchor.spec.variant, anchor.settings
    workload = planner.Workload(context=max(1, settings.context), batch=settings.batch)
    try:
        architecture = planner.read_architecture(str(settings.checkpoint.path), any_age=True)
        weights = planner.forecast(architecture, variant.method, [variant.precision])[variant.precision]
        return planner.planned(architecture, variant, weights, workload, []).most_peak_bytes or 0
    except QuantbenchError:
        return 0


def _free_on_gpus(device: str) -> int:
    """Free bytes, after torch has given back its cached blocks; 0 where that is unknown.

    Torch answers if it uses a GPU already, else NVML: beside llama.cpp, torch would initialize CUDA and take memory for it.
    """
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        return sum(int(torch.cuda.mem_get_info(gpu)[0]) for gpu in gpus_of(device))
    boards = open_boards(device)
    if isinstance(boards, str):
        return 0
    try:
        return sum(boards.free_bytes())
    except OSError:
        return 0


def _prepared(anchor: Anchor) -> bool:
    try:
        METHODS[anchor.spec.variant.method].prepare(anchor.spec, anchor.settings)
    except QuantbenchError:  # an anchor is optional: without one only the ratios are missing
        return False
    return True
