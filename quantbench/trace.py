"""What a worker saw of one scenario: timings, byte counts, generated ids and where the per-position columns lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightMemory:
    """True bytes of everything that stores weights, by kind (parameters, quantization state, buffers, tensors).

    ``footprint_bytes`` is ``get_memory_footprint()`` as transformers says it; None where there is no such figure.
    """

    by_kind: Mapping[str, int]
    footprint_bytes: int | None = None

    @property
    def weight_bytes(self) -> int:
        """The sum over all kinds."""
        return sum(self.by_kind.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One timed answer: ``prefill_s`` to the first token, ``gaps_s`` between tokens, ``e2e_s`` for all of it."""

    prompt: int
    prompt_tokens: int
    prefill_s: float
    gaps_s: tuple[float, ...]
    e2e_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Answers that were timed together; the anchor's round follows the variant's round of the same index."""

    index: int
    variant: tuple[Generation, ...]
    anchor: tuple[Generation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A greedy answer: token ids up to and with the first end-of-sequence id, and their text."""

    prompt: str
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What the reference said of one prompt set; its full log-probabilities lie beside it in a memory-mapped file.

    ``prompt_tokens`` are the ids that every method gets; ``continuations`` were sampled from the reference, seeded, and are
    what teacher-forced scoring is done on; ``answers`` are greedy.
    """

    parameters: int
    checkpoint_dtype: str
    context_limit: int | None
    prompt_tokens: tuple[tuple[int, ...], ...]
    continuations: tuple[tuple[int, ...], ...]
    answers: tuple[Answer, ...]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what ``save`` wrote."""
        body: dict[str, Any] = json.loads(path.read_text())
        for name in ("prompt_tokens", "continuations"):
            body[name] = tuple(tuple(ids) for ids in body[name])
        body["answers"] = tuple(_answer(entry) for entry in body["answers"])
        return cls(**body)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakMemory:
    """Host memory in bytes during one round of generation, from the kernel's high-water mark (VmHWM after a reset).

    ``start_rss_bytes`` is what the process held before the model was opened (a forked worker inherits pages);
    ``load_peak_rss_bytes`` is the high-water mark while it was opened.
    ``rss_anon_bytes`` and ``rss_file_bytes`` are the split at the end of the round.
    """

    peak_rss_bytes: int
    start_rss_bytes: int
    load_peak_rss_bytes: int
    rss_anon_bytes: int
    rss_file_bytes: int
    device_allocated_bytes: int | None = None
    device_reserved_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Everything seen of one scenario.

    ``columns`` is an .npz of equally long arrays, one entry per scored position: ``prompt`` int32, ``kld``, ``nll`` and
    ``nll_reference`` float64, ``top1`` bool.
    """

    import_s: float
    load_s: float
    quantize_s: float | None
    measured_s: float
    """From opening the model until this prompt set was done: everything but the harness's own work."""
    parameters: int
    weights: WeightMemory
    weight_bytes_running: int
    artifact_bytes: int | None
    peak: PeakMemory
    anchor: str
    rounds: tuple[Round, ...]
    answers: tuple[Answer, ...]
    columns: Path | None
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was found rather than asked: kernel class, ISA, library versions, KV dtype, checkpoint dtype, threads, context."""

    def save(self, path: Path) -> None:
        """Write as JSON."""
        body = {**asdict(self), "columns": str(self.columns) if self.columns else None}
        partial = path.with_suffix(".partial")  # a worker may be killed while it writes
        partial.write_text(json.dumps(body))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read what ``save`` wrote."""
        body: dict[str, Any] = json.loads(path.read_text())
        body["weights"] = WeightMemory(**body["weights"])
        body["peak"] = PeakMemory(**body["peak"])
        body["rounds"] = tuple(_round(entry) for entry in body["rounds"])
        body["answers"] = tuple(_answer(entry) for entry in body["answers"])
        body["columns"] = Path(body["columns"]) if body["columns"] else None
        return cls(**body)


def _round(entry: dict[str, Any]) -> Round:
    return Round(
        index=entry["index"],
        variant=tuple(_generation(each) for each in entry["variant"]),
        anchor=tuple(_generation(each) for each in entry["anchor"]),
    )


def _generation(entry: dict[str, Any]) -> Generation:
    return Generation(**{**entry, "gaps_s": tuple(entry["gaps_s"])})


def _answer(entry: dict[str, Any]) -> Answer:
    return Answer(**{**entry, "prompt_tokens": tuple(entry["prompt_tokens"]), "tokens": tuple(entry["tokens"])})
