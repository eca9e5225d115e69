"""From a worker's trace, or the reason why there is none, to the record of a case."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence

from quantbench.core.job import Failure, Task
from quantbench.core.record import Missing, Record, Sample, Status, Value
from quantbench.core.trace import NO_REFERENCE, Generation, Reference, Trace
from quantbench.measuring.passes.similarity import REFERENCE_FILE
from quantbench.metrics import evaluate
from quantbench.metrics.text import compare_answers
from quantbench.planning.case import Case


def measured(case: Case, task: Task, trace: Trace) -> Record:
    """The record of a trace; a metric that fails makes it an error."""
    try:
        return _evaluated(case, task, trace)
    except Exception as error:  # noqa: BLE001 - a metric may be a plug-in's; its failure costs only this row
        reason = f"a metric failed: {type(error).__name__}: {error}"
        return failed(case, Failure(status=Status.ERROR, reason=reason, traceback=traceback.format_exc()))


def failed(case: Case, failure: Failure) -> Record:
    """The record of a case without a trace."""
    return Record(
        scenario=case.scenario,
        scenario_key=case.key,
        status=failure.status,
        reason=failure.reason,
        traceback=failure.traceback,
        repeat=case.scenario.repeat,
        predicted_weight_bytes=case.outlook.weight_bytes,
        facts=case.facts,
        variant=case.variant,
    )


def _evaluated(case: Case, task: Task, trace: Trace) -> Record:
    reference = Reference.load(task.reference / REFERENCE_FILE) if task.reference else None
    return Record(
        scenario=case.scenario,
        scenario_key=case.key,
        status=Status.OK,
        values=_explained(evaluate(trace, reference), task.no_reference),
        facts={**trace.facts, **case.facts, "anchor": trace.anchor},
        variant=case.variant,
        samples=tuple(raw_samples(trace, case.scenario.conditions.output_tokens - 1)),
        outputs=compare_answers(trace.answers, reference.answers, trace.columns) if reference and trace.answers else (),
        repeat=case.scenario.repeat,
        predicted_weight_bytes=case.outlook.weight_bytes,
    )


def _explained(values: Mapping[str, Value], no_reference: str) -> dict[str, Value]:
    """The values, with the reason why there is no reference where metrics only know that there is none."""
    absent = Missing(NO_REFERENCE)
    return {name: Missing(no_reference) if no_reference and value == absent else value for name, value in values.items()}


def raw_samples(trace: Trace, stride: int) -> Iterable[Sample]:
    """Raw numbers; ``stride`` is the most gaps that an answer can have, so that a gap's index encodes prompt and position."""
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
