"""From stored rows back to a record and to as much of its trace as they hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from quantbench.core.record import Missing, Output, Record, Sample, Status
from quantbench.core.scenario import Scenario, Variant
from quantbench.core.trace import Answer, Calls, Generation, Round, Trace
from quantbench.metrics import all_columns

Rows = Sequence[Mapping[str, Any]]

_NOT_KEPT = "the run was resumed, and this was not stored when it was measured"
_FOUND = {
    "kernel": "kernel", "kv_dtype": "kv_dtype", "checkpoint_dtype": "checkpoint_dtype", "anchor": "anchor",
    "artifact_maker": "artifact_maker", "artifact_sha256": "artifact_sha256", "artifact_note": "artifact_note",
    "artifact_audit": "artifact_audit",
    "threads": "threads", "waiting": "waiting", "context": "context", "device_found": "device",
}  # fmt: skip
"""Columns that are facts in a record."""
_PARTS = ("weights", "weight_bytes_running", "peak", "columns", "load_points", "top_logprobs", "native")


def restored(scenario: Scenario, row: Mapping[str, Any], samples: Rows, outputs: Rows) -> tuple[Record, Trace] | None:
    """The record of an ok row with its samples and answers, and its trace; None where these are gone or of another row."""
    timed = any(row.get(column.name) is not None for column in all_columns() if column.timed)
    gone = (timed and not samples) or (not outputs and row.get("chrf") is not None)
    older = any(each.get("tokens") is None for each in samples if each["phase"] == "e2e")  # such files lack the token count
    if gone or older or any(each["scenario_key"] != row["scenario_key"] for each in (*samples, *outputs)):
        return None
    record = _record(scenario, row, samples, outputs)
    return record, _trace(record, row)


def _made(kind: type[Any], row: Mapping[str, Any]) -> Any:
    """A Sample or an Output from a stored row; lists become tuples."""
    found = {each.name: row.get(each.name) for each in fields(kind)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})


def _record(scenario: Scenario, row: Mapping[str, Any], samples: Rows, outputs: Rows) -> Record:
    reasons = json.loads(row["null_reasons"])

    def value(name: str) -> Any:
        return Missing(reasons.get(name, _NOT_KEPT)) if row.get(name) is None else row[name]

    return Record(
        scenario=scenario,
        scenario_key=row["scenario_key"],
        status=Status(row["status"]),
        values={column.name: value(column.name) for column in all_columns()},
        facts=json.loads(row["facts"]) | {fact: str(row[name]) for name, fact in _FOUND.items() if row.get(name) is not None},
        samples=tuple(_made(Sample, each) for each in samples),
        outputs=tuple(_made(Output, each) for each in outputs),
        variant=_variant(scenario.variant, row),
        repeat=scenario.repeat,
        attempts=row.get("attempts") or 1,
        predicted_weight_bytes=value("predicted_weight_bytes"),
    )


def _variant(asked: Variant, row: Mapping[str, Any]) -> Variant | None:
    """What an artifact's files were found to hold."""
    return replace(asked, method=row["method"] or "", precision=row["precision"] or "") if asked.artifact else None


def _trace(record: Record, row: Mapping[str, Any]) -> Trace:
    """As much of the trace as the stored numbers hold; the rest is absent, with the reason."""
    reasons = json.loads(row["null_reasons"])
    stored: dict[str, Any] = {name: row.get(name) for name in ("load_s", "quantize_s", "parameters", "artifact_bytes")}
    return Trace(
        import_s=row["import_s"],
        **stored,
        measured_s=math.nan,
        weights=None,
        weight_bytes_running=None,
        peak=None,
        anchor=row["anchor"] or "",
        rounds=_rounds(record.samples, record.scenario.batch),
        answers=tuple(
            Answer(prompt=each.prompt, prompt_tokens=each.prompt_tokens, tokens=each.variant_tokens, text=each.variant_text)
            for each in record.outputs
        ),
        columns=None,
        score_s=tuple(each.value_s for each in record.samples if each.phase == "score"),
        calls=_calls(record.samples),
        absent={
            **dict.fromkeys(_PARTS, _NOT_KEPT),
            **{name: reasons.get(name, _NOT_KEPT) for name, value in stored.items() if value is None},
        },
        facts=record.facts,
    )  # fmt: skip


def _rounds(samples: Sequence[Sample], batch: int) -> tuple[Round, ...]:
    """Rounds from samples, which were stored answer by answer: prefill, end to end, gaps."""
    sides: dict[str, dict[int, list[Generation]]] = {"": {}, "anchor_": {}}
    for each in samples:
        anchor, phase = each.phase.startswith("anchor_"), each.phase.removeprefix("anchor_")
        answers = sides["anchor_" * anchor].setdefault(each.round, []) if phase in ("prefill", "e2e", "gap") else []
        if phase == "prefill":
            first = each.tokens or 1
            begun = Generation(
                prompt=each.index, prompt_tokens=None, prefill_s=each.value_s, gaps_s=(), e2e_s=math.nan, first_tokens=first,
                batch=batch,
            )  # fmt: skip
            answers.append(begun)
        elif phase == "e2e":
            answers[-1] = replace(answers[-1], e2e_s=each.value_s, tokens=each.tokens or 0)
        elif phase == "gap":
            answers[-1] = replace(answers[-1], gaps_s=(*answers[-1].gaps_s, each.value_s))
    return tuple(
        Round(index=index, variant=tuple(answers), anchor=tuple(sides["anchor_"].get(index, ())))
        for index, answers in sides[""].items()
    )


def _calls(samples: Sequence[Sample]) -> tuple[Calls, ...]:
    sides: dict[int, dict[str, list[float]]] = {}
    for each in samples:
        if each.phase in ("call", "anchor_call"):
            sides.setdefault(each.round, {"call": [], "anchor_call": []})[each.phase].append(each.value_s)
    return tuple(Calls(variant=tuple(side["call"]), anchor=tuple(side["anchor_call"])) for side in sides.values())
