"""How long a run will take: loads, passes and tokens at the speed that memory bandwidth allows, computed from shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from quantbench.core.cache import recall, remember
from quantbench.core.errors import QuantbenchError
from quantbench.core.machine import available_cpus, describe
from quantbench.core.scenario import Effort, JobKey, Scenario, baseline, prompt_tokens
from quantbench.measuring.passes.bandwidth import remembered_bandwidth
from quantbench.methods import METHODS
from quantbench.models.architecture import Architecture
from quantbench.planning import planner, prompts
from quantbench.running.progress import Expected, duration

_START_S = 2.0
"""A worker's imports and its checks."""

_LOAD_BPS = 5e8
_CONVERT_BPS = 5e7
"""Bytes of 16-bit weights that a converter or quantizer processes per second."""

_PREPARE_START_S = 5.0
"""Imports of a converter or quantizer, and what it does for a model of any size."""

_STEP_S = 2e-4
"""Fixed cost of a decode step per layer, in seconds: Python and kernel calls."""

_LAYERS = 32
"""Of a model of which only the bytes are known."""

_CORE_FLOPS = 4e10
_PROMPT_TOKENS = 20
_ANCHOR = "torch/fp32"
"""What an artifact's rounds may alternate with, before it is known which method reads it."""

_TEXT_CHARACTERS = 4
"""Characters per token, roughly; a prompt has about 20 tokens."""

_TOGETHER = 16
_TOGETHER_COST = 1.8
"""The reference samples 16 continuations at once, and such a step takes as long as 1.8 single ones."""

_ANCHORED = 4 / 3
"""Time of a variant's and its anchor's rounds over the variant's own: the anchor takes a quarter of the whole."""


_ASSUMED_BPS = {"cpu": 1e10, "cuda": 5e11}
"""Bytes per second, used until a run has measured the bandwidth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpeed:
    """A machine's bandwidth and cores; ``pace`` is the factor by which earlier runs took longer than estimated."""

    bandwidth_bps: float
    cores: int
    pace: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The work of a variant's job: weights in bytes, parameters, layers, and the tokens of its prompt sets.

    ``answers`` of ``answer_tokens`` are timed; ``scored`` tokens are read at once, prompts and continuations alike.
    """

    weight_bytes: float
    anchor_bytes: float
    parameters: int
    layers: int
    answers: int
    answer_tokens: int
    scored: int


def step_s(weight_bytes: float, layers: int, machine: MachineSpeed) -> float:
    """Seconds per decode step: all weights are read once."""
    return weight_bytes / machine.bandwidth_bps + layers * _STEP_S


def reading_s(parameters: int, tokens: int, machine: MachineSpeed) -> float:
    """Seconds to read tokens in one pass: two operations per parameter and token."""
    return 2 * parameters * tokens / (_CORE_FLOPS * machine.cores)


def job_s(load: Load, effort: Effort, machine: MachineSpeed) -> float:
    """Seconds of one variant's job, without what is made only once: start, load, memory, similarity and latency passes."""
    answer = load.answer_tokens * step_s(load.weight_bytes, load.layers, machine)
    anchor = load.answer_tokens * step_s(load.anchor_bytes, load.layers, machine)
    timed = max(load.answers * answer, min(effort.budget_s, effort.max_rounds * load.answers * answer)) if load.answers else 0.0
    loading = (load.weight_bytes + load.anchor_bytes) / _LOAD_BPS
    warm = 2 * answer + 2 * anchor if load.answers else answer
    return _START_S + loading + warm + timed * _ANCHORED + reading_s(load.parameters, load.scored, machine)


def reference_s(load: Load, sampled: int, steps: int, machine: MachineSpeed) -> float:
    """Seconds to make the reference of ``sampled`` prompts: ``steps`` tokens sampled after each, answered and scored."""
    single = step_s(load.weight_bytes, load.layers, machine)
    sampling = math.ceil(sampled / _TOGETHER) * steps * single * _TOGETHER_COST
    answering = load.answers * load.answer_tokens * single
    return _START_S + load.weight_bytes / _LOAD_BPS + sampling + answering + reading_s(load.parameters, load.scored, machine)


def expected(scenarios: Iterable[Scenario], effort: Effort, machine: MachineSpeed) -> dict[JobKey, Expected]:
    """The estimate of each job, except for models whose shapes are not known in advance.

    What is made only once, the reference and converted or quantized files, is counted for the first job that needs it, even
    though the cache may have it already.
    """
    groups: dict[JobKey, list[Scenario]] = {}
    for scenario in scenarios:
        groups.setdefault(scenario.job, []).append(scenario)
    known = {model: _shapes(model) for model in dict.fromkeys(group[0].model for group in groups.values())}
    sizes = _sizes(chain.from_iterable(groups.values()))
    referred: set[Scenario] = set()
    estimates: dict[JobKey, Expected] = {}
    for key, group in groups.items():
        first = group[0]
        shapes = known[first.model]
        if shapes is None:
            continue
        prepares = first.variant.method and METHODS[first.variant.method].preparer
        loads = [_load(each, shapes.parameters, len(shapes.layers), sizes[each.prompts]) for each in group]
        new = dict(zip((each.reference() for each in group), loads, strict=True))
        new = {reference: load for reference, load in new.items() if reference not in referred}
        referred |= set(new)
        estimates[key] = Expected(
            measure_s=machine.pace * sum(job_s(load, effort, machine) for load in loads),
            reference_s=machine.pace * sum(_reference(each, load, sizes[each.prompts], machine) for each, load in new.items()),
            prepare_s=_PREPARE_START_S + 2 * shapes.parameters / _CONVERT_BPS if prepares else 0.0,
        )
    return estimates


def _shapes(model: str) -> Architecture | None:
    try:
        return planner.read_architecture(model, any_age=True)
    except QuantbenchError:
        return None


def files_s(scenarios: Sequence[Scenario], sizes: Mapping[str, int], effort: Effort, machine: MachineSpeed) -> float:
    """Seconds to measure published files of so many bytes, by their names, before any header is there to tell their shapes.

    The largest is taken for weights of 16 bits, and the reference for one more such file.
    """
    parameters = max(sizes.values()) // 2
    counts = _sizes(scenarios)
    loads = [_load(each, parameters, _LAYERS, counts[each.prompts]) for each in scenarios]
    found = [(each, replace(load, weight_bytes=sizes[each.variant.name])) for each, load in zip(scenarios, loads, strict=True)]
    measured = sum(job_s(load, effort, machine) for _, load in found)
    references = (_reference(each.reference(), load, counts[each.prompts], machine) for each, load in found)
    return machine.pace * (measured + max(references))


def _load(scenario: Scenario, parameters: int, layers: int, size: tuple[int, int]) -> Load:
    conditions = scenario.conditions
    variant = scenario.variant
    known = None if variant.artifact else METHODS[variant.method]  # what an artifact is, is known once its files are read
    bits = known.precision(variant.precision).bits if known else None
    anchor = baseline(known.anchor if known else _ANCHOR, conditions.device).partition("/")[2]
    count, tokens = size
    answered = min(count, getattr(conditions, "answered_prompts", 0) or count)
    is_text = scenario.reads == "text"
    return Load(
        weight_bytes=parameters * (bits or 16) / 8, anchor_bytes=parameters * (4 if anchor == "fp32" else 2),
        parameters=parameters, layers=layers, answers=0 if is_text else answered, answer_tokens=conditions.output_tokens,
        scored=tokens if is_text else tokens + count * conditions.continuation_tokens,
    )  # fmt: skip


def _sizes(scenarios: Iterable[Scenario]) -> dict[str, tuple[int, int]]:
    """By prompt set the number of its prompts, and roughly their tokens in total; each is read once."""
    return {name: _size(scenario) for name, scenario in {each.prompts: each for each in scenarios}.items()}


def _size(scenario: Scenario) -> tuple[int, int]:
    try:
        texts = prompts.load(scenario.prompts).prompts
    except QuantbenchError:
        return 1, _PROMPT_TOKENS
    if scenario.reads == "text":
        return len(texts), sum(map(len, texts)) // _TEXT_CHARACTERS
    return len(texts), len(texts) * (prompt_tokens(scenario.prompts) or _PROMPT_TOKENS)


def _reference(wanted: Scenario, load: Load, size: tuple[int, int], machine: MachineSpeed) -> float:
    bits = METHODS[wanted.variant.method].precision(wanted.variant.precision).bits or 16
    dense = Load(
        weight_bytes=load.parameters * bits / 8, anchor_bytes=0, parameters=load.parameters, layers=load.layers,
        answers=load.answers, answer_tokens=wanted.conditions.answer_tokens, scored=load.scored,
    )  # fmt: skip
    count = 0 if wanted.reads == "text" else size[0]
    return reference_s(dense, count, wanted.conditions.continuation_tokens, machine)


def this_machine(device: str, threads: int) -> tuple[MachineSpeed, str]:
    """This machine's speed by the findings of earlier runs here, and in words what it is based on."""
    cores = threads or available_cpus()
    known = remembered_bandwidth(device, cores)
    bandwidth = known or _ASSUMED_BPS[device.partition(":")[0]]
    found = recall("pace", _here(device))
    pace = found if isinstance(found, float) and 0 < found < math.inf else None
    origin = "this machine's memory bandwidth" if known else f"an assumed memory bandwidth of {bandwidth / 1e9:.0f} GB/s"
    return MachineSpeed(bandwidth_bps=bandwidth, cores=cores, pace=pace or 1.0), origin + " and earlier runs" * bool(pace)


def remember_pace(device: str, before: float, pace: float) -> None:
    """Keep for later runs how much longer measuring took than estimated; the estimate was made with the pace ``before``."""
    remember("pace", _here(device), before * pace)


def _here(device: str) -> dict[str, object]:
    return {"machine": describe().fingerprint, "device": device}


def announced(scenarios: Sequence[Scenario], forecast: Mapping[JobKey, Expected], timeout_s: float, origin: str) -> list[str]:
    """Sentences about a run's expected length, before it starts; none where nothing is known."""
    if not forecast:
        return []
    jobs = {each.job for each in scenarios}
    reference, prepare = (sum(getattr(each, name) for each in forecast.values()) for name in ("reference_s", "prepare_s"))
    whole = reference + prepare + sum(each.measure_s for each in forecast.values())
    some = f" for {len(forecast)} of them" if len(forecast) < len(jobs) else ""
    once = {"references": reference, "converting": prepare}
    made = " and ".join(f"{duration(seconds)} for {what}" for what, seconds in once.items() if seconds)
    of_it = f" ({made}, unless cached)" if made else ""
    length = f"{len(scenarios)} scenarios in {len(jobs)} jobs: about {duration(whole)}{some}{of_it}"
    lines = [f"quantbench: {length}; estimated from {origin}"]
    longest = max(each.reference_s for each in forecast.values())
    if longest > timeout_s:
        lines.append(
            f"quantbench: the reference may take {duration(longest)}, but only {duration(timeout_s)} is allowed; without it "
            "there are no similarity figures; raise --timeout, or use --profile quick or --reference torch/bf16"
        )
    return lines
