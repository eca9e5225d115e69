"""From what a worker saw, or why it saw nothing, to the record of a scenario."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence

from quantbench.core.cache import made_by
from quantbench.core.errors import QuantbenchError
from quantbench.core.job import Checkpoint, Task
from quantbench.core.machine import versions
from quantbench.core.record import Missing, Record, Sample, Status, Value
from quantbench.core.scenario import Scenario
from quantbench.core.trace import NO_REFERENCE, Generation, Reference, Trace
from quantbench.measuring.passes.similarity import REFERENCE_FILE
from quantbench.methods import METHODS
from quantbench.metrics import evaluate
from quantbench.metrics.text import compare_answers
from quantbench.planning import prompts
from quantbench.planning.preflight import Preflight
from quantbench.running.engines import Failure

_REFERENCE_MAKERS = (
    "quantbench.measuring.passes.reference", "quantbench.measuring.passes.similarity", "quantbench.measuring.passes.text",
    "quantbench.models.tokenizer",
    "quantbench.runtimes.transformers.model", "quantbench.runtimes.llama_cpp.model", "quantbench.core.trace",
)  # fmt: skip
"""What samples, answers, scores and writes a reference, besides the method's own file."""

_RUNTIMES = ("torch", "transformers", "llama-cpp-python", "bitsandbytes", "gptqmodel", "torchao")


class Recorder:
    """Makes records; what was planned of their weights comes from ``preflight``."""

    def __init__(self, preflight: Preflight) -> None:
        """Nothing is read yet."""
        self._preflight = preflight

    def key(self, scenario: Scenario, checkpoint: Checkpoint | None) -> str:
        """The scenario's key, with the content behind its names."""
        return scenario.key(_identity(scenario, checkpoint))

    def measured(self, scenario: Scenario, trace: Trace, task: Task, checkpoint: Checkpoint) -> Record:
        """The record of a trace; a metric that fails makes it an error."""
        try:
            return self._evaluated(scenario, trace, task, checkpoint)
        except Exception as error:  # noqa: BLE001 - a metric may be anybody's; its failure costs this row only
            reason = f"a metric failed: {type(error).__name__}: {error}"
            failure = Failure(status=Status.ERROR, reason=reason, traceback=traceback.format_exc())
            return self.failed(scenario, failure, checkpoint)

    def failed(self, scenario: Scenario, failure: Failure, checkpoint: Checkpoint | None) -> Record:
        """The record of a scenario without a trace."""
        return Record(
            scenario=scenario,
            scenario_key=self.key(scenario, checkpoint),
            status=failure.status,
            reason=failure.reason,
            traceback=failure.traceback,
            repeat=scenario.repeat,
            predicted_weight_bytes=self._preflight.outlook(scenario, checkpoint).weight_bytes,
        )

    def _evaluated(self, scenario: Scenario, trace: Trace, task: Task, checkpoint: Checkpoint) -> Record:
        reference = Reference.load(task.reference / REFERENCE_FILE) if task.reference else None
        return Record(
            scenario=scenario,
            scenario_key=self.key(scenario, checkpoint),
            status=Status.OK,
            values=_explained(evaluate(trace, reference), task.no_reference),
            facts={**trace.facts, "anchor": trace.anchor},
            samples=tuple(raw_samples(trace, scenario.conditions.output_tokens - 1)),
            outputs=compare_answers(trace.answers, reference.answers, trace.columns) if reference and trace.answers else (),
            repeat=scenario.repeat,
            predicted_weight_bytes=self._preflight.outlook(scenario, checkpoint).weight_bytes,
        )


def _explained(values: Mapping[str, Value], no_reference: str) -> dict[str, Value]:
    """Where metrics only know that there is no reference: why there is none."""
    absent = Missing(NO_REFERENCE)
    return {name: Missing(no_reference) if no_reference and value == absent else value for name, value in values.items()}


def reference_identity(wanted: Scenario, checkpoint: Checkpoint) -> dict[str, object]:
    """All that the artifact of the reference ``wanted`` is made from."""
    chosen = prompts.load(wanted.prompts)
    return {
        "content": checkpoint.content_hash, "prompts": chosen.content_hash, "variant": wanted.variant.name,
        "conditions": _made_by(wanted), "recipe": dict(METHODS[wanted.variant.method].recipe(wanted)),
        "versions": {name: number for name, number in versions().items() if name in _RUNTIMES},
        "made_by": made_by(*_REFERENCE_MAKERS, METHODS[wanted.variant.method].opener.__module__),
    }  # fmt: skip


_NOT_MADE_BY = ("threads", "reference", "output_tokens")
_NOT_OF_A_TEXT = ("answer_tokens", "answered_prompts", "continuation_tokens", "seed")


def _made_by(wanted: Scenario) -> dict[str, str | int]:
    """The conditions that its artifact is made by: not threads, nor the length of timed answers."""
    others = (*_NOT_MADE_BY, *(_NOT_OF_A_TEXT if wanted.reads == "text" else ()))
    return {name: value for name, value in wanted.heeded().items() if name not in others}


def _identity(scenario: Scenario, checkpoint: Checkpoint | None) -> Mapping[str, str]:
    """The content behind the names; the name itself where there is nothing behind it."""
    try:
        chosen = prompts.load(scenario.prompts).content_hash
    except QuantbenchError:
        chosen = scenario.prompts
    model = f"{checkpoint.revision} {checkpoint.content_hash}" if checkpoint else scenario.model
    reference = scenario.reference()
    compared = {f"reference_{name}": asked for name, asked in METHODS[reference.variant.method].recipe(reference).items()}
    return {"model": model, "prompts": chosen, **METHODS[scenario.variant.method].recipe(scenario), **compared}


def raw_samples(trace: Trace, stride: int) -> Iterable[Sample]:
    """Raw numbers; ``stride`` is the most gaps that an answer can have, so that a gap's index tells prompt and position."""
    for number, seconds in enumerate(trace.score_s):
        yield Sample("score", 0, number, seconds)
    for number, calls in enumerate(trace.calls):
        for phase, taken in (("call", calls.variant), ("anchor_call", calls.anchor)):
            yield from (Sample(phase, number, index, seconds) for index, seconds in enumerate(taken))
    for each in trace.rounds:
        for prefix, answers in (("", each.variant), ("anchor_", each.anchor)):
            yield from _round_samples(prefix, each.index, answers, stride)


def _round_samples(prefix: str, index: int, answers: Sequence[Generation], stride: int) -> Iterable[Sample]:
    for answer in answers:
        yield Sample(f"{prefix}prefill", index, answer.prompt, answer.prefill_s, answer.first_tokens)
        yield Sample(f"{prefix}e2e", index, answer.prompt, answer.e2e_s, answer.tokens)
        for position, gap in enumerate(answer.gaps_s):
            yield Sample(f"{prefix}gap", index, answer.prompt * stride + position, gap)
