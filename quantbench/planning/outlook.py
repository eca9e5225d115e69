"""Before anything is loaded: how much memory a scenario's weights will take, and whether it can run at all."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantbench import models
from quantbench.core.errors import QuantbenchError, UsageError
from quantbench.core.job import Checkpoint
from quantbench.core.record import Missing
from quantbench.core.scenario import Conditions, Scenario, prompt_tokens, short_name
from quantbench.models.architecture import Architecture
from quantbench.planning import planner
from quantbench.planning.planner import Planned, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The forecast of a variant: the bytes of its weights, and why it cannot run (empty where it may)."""

    weight_bytes: int | Missing
    refusal: str = ""


class Outlooks:
    """Plans each variant once. A forecast that fails costs nothing but itself."""

    def __init__(self) -> None:
        """Nothing is read before the first forecast."""
        self._architectures: dict[str, Architecture | str] = {}
        self._outlooks: dict[tuple[str, str, Conditions, str, int], Outlook] = {}

    def by_name(self, scenario: Scenario) -> Outlook:
        """The forecast of the scenario's variant from the model's name, before its checkpoint is there."""
        return self._of(scenario, scenario.model)

    def by_files(self, scenario: Scenario, checkpoint: Checkpoint) -> Outlook:
        """The forecast of the scenario's variant from the files of its checkpoint."""
        return self._of(scenario, str(checkpoint.path) if checkpoint.speaks else scenario.model)

    def _of(self, scenario: Scenario, place: str) -> Outlook:
        architecture = self._architecture(place)
        if isinstance(architecture, str):
            return Outlook(weight_bytes=Missing(architecture))
        key = place, scenario.variant.name, scenario.conditions, scenario.prompts, scenario.batch
        if key not in self._outlooks:
            try:
                self._outlooks[key] = _outlook(architecture, scenario)
            except Exception as error:  # noqa: BLE001 - a forecaster may be anybody's; without one nothing is refused
                self._outlooks[key] = Outlook(weight_bytes=Missing(f"the forecast failed: {type(error).__name__}: {error}"))
        return self._outlooks[key]

    def _architecture(self, place: str) -> Architecture | str:
        """The architecture found under a model's name or at its files, or why there is none."""
        if place not in self._architectures:
            self._architectures[place] = _read(place)
        return self._architectures[place]


def _read(place: str) -> Architecture | str:
    if models.is_module(place) or models.is_server(place):
        return "only language models with a known configuration are forecast"
    try:
        return planner.read_architecture(place, any_age=True)
    except QuantbenchError as error:
        return str(error)


def _outlook(architecture: Architecture, scenario: Scenario) -> Outlook:
    named, variant = replace(architecture, name=short_name(scenario.model)), scenario.variant
    weights = planner.forecast(named, variant.method, [variant.precision])[variant.precision]
    fills = planner.runtime_of(variant.method).fills_context
    workload = Workload(context=_least_context(scenario, fills=fills), batch=scenario.batch)
    planned = planner.planned(named, variant, weights, workload, [])
    return Outlook(weight_bytes=_bytes(planned), refusal=_refusal(planned, scenario.conditions))


def _least_context(scenario: Scenario, *, fills: bool) -> int:
    """Tokens certainly held at once: the whole context where the runtime ``fills`` it, else a prompt and its answer."""
    conditions = scenario.conditions
    if length := prompt_tokens(scenario.prompts):
        return max(length + conditions.output_tokens, conditions.context if fills else 0)
    least = max(conditions.output_tokens, conditions.answer_tokens, conditions.continuation_tokens)
    return conditions.context if conditions.context and (fills or scenario.reads == "text") else least


def _bytes(planned: Planned) -> int | Missing:
    if planned.weight_bytes is None:
        return Missing(planned.note or "its method gave no reason")
    return planned.weight_bytes if planned.is_exact else Missing(planned.model_note)


def _refusal(planned: Planned, conditions: Conditions) -> str:
    try:
        found = planner.room_here(conditions, planned.method)
    except UsageError:  # which GPUs there are is the worker's to say
        return ""
    return planned.refusal(found) if found else ""
