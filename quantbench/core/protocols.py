"""What a method is given and what it opens: settings, artifacts, and the protocols of loaded models and endpoints."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from quantbench.core.errors import ModelError
from quantbench.core.job import Checkpoint
from quantbench.core.trace import WeightMemory

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray


SCORE_POSITIONS = 512
"""Positions that a forward pass of ``score`` reads at most: llama.cpp's own batch, and a chunk of a text.

What a low-precision kernel rounds depends on what else is in the pass (scales of activations, outliers), so the number is one
for all methods and hangs on nothing else: neither on memory nor on the vocabulary, threads or batch of prompts.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where and how on this machine: the checked files, worker threads, the context in tokens, and how many sequences of it."""

    checkpoint: Checkpoint
    threads: int
    context: int
    batch: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Draw tokens from the full softmax at a temperature, seeded."""

    seed: int
    temperature: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model made ready on disk, and the seconds that its quantization, pruning or training once took, without conversion.

    ``quantize_s`` is None where it was made elsewhere, or not at all; ``quantized`` is False where it is quantized on load.
    ``file_bytes`` is None where no weight is on disk: a dummy's, which are made while they are loaded. ``facts`` are what was
    found while it was made; they stand in the row beside the loaded model's.
    """

    path: Path
    file_bytes: int | None
    quantize_s: float | None
    quantized: bool = True
    facts: Mapping[str, str] = field(default_factory=dict)


class LoadedModel(Protocol):
    """One loaded model. Token ids are those of the model's own vocabulary; nothing here sees text."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What was found rather than asked: ``kernel``, ``kv_dtype``, ``device`` and whatever else changes a figure.

        ``device`` is where the weights are, ``cpu`` or ``cuda:N``, several places joined by ``+``; it must be told on CUDA.
        """

    def generate(self, prompt: Sequence[int], limit: int, sampling: Sampling | None = None) -> Iterator[int]:
        """Exactly ``limit`` tokens after ``prompt``, end-of-sequence ids included; greedy unless ``sampling`` is given.

        The first ``next()`` is the prefill, each further one a decode step.
        """

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """Logits for positions ``first`` to the last, as chunks [positions, vocabulary] float32, valid until the next one.

        Position i predicts token i + 1.
        """

    def memory(self) -> WeightMemory:
        """True bytes of all weights as they are now, by kind."""

    def synchronize(self) -> None:
        """Wait until the device has finished what was asked of it."""


@runtime_checkable
class Batched(Protocol):
    """A loaded model that can answer several sequences together."""

    def generate_batch(self, prompts: Sequence[Sequence[int]], limit: int) -> Iterator[Sequence[int]]:
        """Exactly ``limit`` greedy steps after ``prompts`` of equal length; each yields a token for every prompt.

        The first ``next()`` is the prefill of all of them. At most ``Settings.batch`` prompts.
        """


@runtime_checkable
class Sliced(Protocol):
    """A loaded model whose ``score`` reads at most ``SCORE_POSITIONS`` at once, and which can read fewer.

    So it can be told what the choice of that number does to the figures; of a model without it nothing is said.
    """

    def score_sliced(self, tokens: Sequence[int], first: int, positions: int) -> Iterator[NDArray[np.float32]]:
        """``score`` in forward passes over at most ``positions`` tokens, from 1 to ``SCORE_POSITIONS``."""


@runtime_checkable
class SamplesTogether(Protocol):
    """A loaded model that can sample after several prompts together, faster than after one at a time."""

    def sample_together(
        self, prompts: Sequence[Sequence[int]], limit: int, samplings: Sequence[Sampling], ends: Container[int]
    ) -> Sequence[tuple[int, ...]]:
        """At most ``limit`` tokens after each prompt, up to and with the first of ``ends``, each drawn with its own seed."""


def until_end(tokens: Iterable[int], ends: Container[int]) -> tuple[int, ...]:
    """``tokens`` up to and with the first of ``ends``; no further one is asked for."""
    kept = []
    for token in tokens:
        kept.append(token)
        if token in ends:
            break
    return tuple(kept)


@runtime_checkable
class HasModule(Protocol):
    """A loaded model that is a torch module inside, which adapters can be put into."""

    @property
    def model(self) -> Any:
        """The module."""


class LoadedModule(Protocol):
    """One loaded module without tokens: it takes an input of its own shape and gives an array."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What was found rather than asked: ``kernel``, ``device`` as of a LoadedModel, and whatever else changes a figure."""

    @property
    def parameters(self) -> int:
        """Parameters of the module before any quantization."""

    def example(self, seed: int, index: int) -> Any:
        """The ``index``-th seeded input, as ``call`` takes it."""

    def call(self, value: Any) -> NDArray[np.float32]:
        """The output for one input, float32, when the device has finished."""

    def memory(self) -> WeightMemory:
        """True bytes of all weights as they are now, by kind, with the bytes of the saved state dict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """One streamed answer: pieces of text, one an event, each with the seconds from the request until it arrived.

    There is at least one piece; it is empty where the answer was. ``tokens`` and ``prompt_tokens`` are the server's counts.
    """

    pieces: tuple[str, ...]
    arrivals_s: tuple[float, ...]
    tokens: int | None
    prompt_tokens: int | None


class StreamDroppedError(ModelError):
    """A server ended a connection or a stream before its answer was whole."""


class Endpoint(Protocol):
    """A served model: text in, text out. Requests may be made from several threads at once.

    Each raises ModelError when the server is down, slow, answers with an error or with what cannot be, and its
    StreamDroppedError when the server drops the stream.
    """

    @property
    def facts(self) -> Mapping[str, str]:
        """What was found rather than asked: ``kernel`` (the server's own name) and the served model; what else it was sent."""

    @property
    def artifact(self) -> Artifact | None:
        """The file that is served, where quantbench itself started the server; else None."""

    def answer(self, prompt: str, limit: int) -> Streamed:
        """Stream a greedy answer of at most ``limit`` tokens."""

    def top_tokens(self, prompt: str, k: int) -> Mapping[str, float] | None:
        """Log-probabilities in nats of the ``k`` likeliest next tokens by their text; None when the server gives none."""

    def native(self, prompt: str, limit: int) -> Mapping[str, float]:
        """The server's own ``prompt_tokens``, ``prefill_s``, ``tokens`` and ``decode_s``; empty where it does not tell them."""
