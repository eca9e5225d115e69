"""What was found of a variant on one prompt set, put together as its trace."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantbench.core.job import Checkpoint, Job, Task
from quantbench.core.signals import Found
from quantbench.core.trace import Answer, PeakMemory, Probes, Round, Slicing, Trace, WeightMemory
from quantbench.core.waiting import waiting
from quantbench.core.wire import read
from quantbench.measuring.passes.bandwidth import bytes_per_token
from quantbench.measuring.subjects.prompts import Prompts
from quantbench.methods import Artifact, LoadedModel
from quantbench.models.checkpoint import count_parameters
from quantbench.models.safetensors import weight_files

_NOT_ANSWERED = "a text is scored, not answered; name a prompt set such as 'mixed' as well"
_RANDOM = "random weights say nothing about similarity"
_MADE = "its random weights are generated while loading, so the time says nothing about loading"
_UNWRITTEN = "its random weights are generated while loading, and never written to disk"
_UNQUANTIZED = "its file was written with random weights, without a quantizer"
_UNPROBED = "a dummy is not probed; probe the real model, or the canary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The opened variant: what loading took, its weights before and after it ran, where it was measured."""

    model: LoadedModel
    artifact: Artifact | None
    import_s: float
    load_s: float
    started: float
    weights: WeightMemory
    running: WeightMemory
    bandwidth: float | str
    context: int
    threads: int
    audited: Mapping[str, str]
    """What an audit of a published artifact's files found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The result of the latency pass, and the greedy answers."""

    rounds: tuple[Round, ...] = ()
    answers: tuple[Answer, ...] = ()
    signals: Mapping[str, Found] = field(default_factory=dict)
    rested: bool = False


@dataclass(frozen=True, slots=True)
class Columns:
    """The file of per-position columns, the seconds of scoring by prompt or chunk, and the effects of slicing and rounding.

    ``rounded`` is None but for a control. ``signals`` are the metrics' reports on this pass; ``rested`` says whether threads
    gave way to other work.
    """

    path: Path
    seconds: tuple[float, ...]
    slicing: Slicing | str
    rounded: Path | str | None
    signals: Mapping[str, Found]
    rested: bool


def assembled(
    job: Job, prompts: Prompts, opened: Opened, answered: Answered, *, peak: PeakMemory, columns: Columns | None, anchor: str
) -> Trace:
    """The trace of one prompt set."""
    checkpoint, artifact, reference = job.checkpoint, opened.artifact, prompts.reference
    unwritten = _unwritten(checkpoint, artifact)
    length, batch = job.conditions.output_tokens, prompts.task.batch
    timed = prompts.answered(job.conditions).ids
    found = {**opened.model.facts, **(artifact.facts if artifact else {}), **opened.audited}
    waits = waiting(rested=answered.rested if answered.rounds or columns is None else columns.rested)
    facts = {**found, "threads": str(opened.threads), "waiting": waits, "context": str(opened.context)}
    return Trace(
        import_s=opened.import_s,
        load_s=None if unwritten else opened.load_s,
        quantize_s=artifact.quantize_s if artifact else None,
        measured_s=time.perf_counter() - opened.started,
        parameters=reference.parameters if reference else count_parameters(checkpoint),
        weights=opened.weights,
        weight_bytes_running=opened.running.weight_bytes,
        artifact_bytes=None if unwritten else artifact.file_bytes if artifact else _checkpoint_bytes(checkpoint),
        peak=peak,
        anchor=anchor,
        rounds=answered.rounds,
        answers=answered.answers,
        columns=columns.path if columns and not checkpoint.random_weights else None,
        rounded=columns.rounded if columns and isinstance(columns.rounded, Path) else None,
        score_s=columns.seconds if columns else (),
        slicing=columns.slicing if columns and isinstance(columns.slicing, Slicing) else None,
        score_tokens=sum(len(prompt) + len(rest) - 1 for prompt, rest in prompts.scored) if columns else 0,
        memory_bandwidth_bps=None if isinstance(opened.bandwidth, str) else opened.bandwidth,
        bytes_per_token=bytes_per_token(opened.running, timed, length, batch) if answered.rounds else None,
        signals={**(columns.signals if columns else {}), **answered.signals},
        absent=_absent(prompts.task, checkpoint, artifact)
        | _reasons(
            memory_bandwidth_bps=opened.bandwidth,
            slicing=columns.slicing if columns else None,
            rounded=columns.rounded if columns else None,
        ),
        prequantized=bool(artifact and artifact.quantized) or bool(checkpoint.quantized),
        probes=_probes(job),
        facts={**facts, "checkpoint_dtype": reference.checkpoint_dtype if reference else ""},
    )


def _reasons(**seen: object) -> dict[str, str]:
    """Why parts of a trace are missing: the values that are a sentence instead."""
    return {name: each for name, each in seen.items() if isinstance(each, str)}


def _unwritten(checkpoint: Checkpoint, artifact: Artifact | None) -> bool:
    """Whether a dummy's weights are generated while loading and never written to disk."""
    return checkpoint.random_weights and (artifact is None or artifact.file_bytes is None)


def _absent(task: Task, checkpoint: Checkpoint, artifact: Artifact | None) -> dict[str, str]:
    """Why parts of a trace are missing."""
    absent = dict.fromkeys(("rounds", "answers", "anchor"), _NOT_ANSWERED) if task.is_text else {}
    if checkpoint.random_weights:
        absent |= {"answers": _RANDOM, "columns": _RANDOM, "probes": _UNPROBED}
        if _unwritten(checkpoint, artifact):
            absent |= {"load_s": _MADE, "artifact_bytes": _UNWRITTEN}
        elif artifact and artifact.quantized:
            absent["quantize_s"] = _UNQUANTIZED
    return absent


def _probes(job: Job) -> Probes:
    return read(job.probes, Probes) if job.probes else {}


def _checkpoint_bytes(checkpoint: Checkpoint) -> int:
    return sum(path.stat().st_size for path in weight_files(checkpoint.path))
