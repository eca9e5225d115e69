"""What a method receives and what it opens: settings, artifacts, and the protocols of loaded models and endpoints."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from quantbench.core.errors import ModelError
from quantbench.core.job import Checkpoint
from quantbench.core.trace import Decoding, WeightMemory

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray


SCORE_POSITIONS = 256
"""The most positions in one forward pass of ``score``: the half of a text's chunk that is only read, then the half that counts.

A pass computes all its keys for all its positions, masked or not, and holds all their logits: two halves take less of both.

How a low-precision kernel rounds depends on what else is in the pass (activation scales, outliers). So the number is the same
for all methods and depends on nothing else: not on memory, vocabulary, threads or the batch of prompts.
"""

N_GPU_LAYERS = "n_gpu_layers"
"""The fact of how many layers are on a GPU; only a model of which a part may be on the host has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to open on this machine and how: the checked files, threads, context length in tokens, and sequences in a batch."""

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
    """A model prepared on disk, and the seconds that its quantization, pruning or training took, without conversion.

    ``quantize_s`` is None if it was quantized elsewhere, or not at all; ``quantized`` is False if it is quantized on load.
    ``file_bytes`` is None if no weights are on disk, as for a dummy whose weights are made on load. ``facts`` were found while
    it was made; they stand in the row beside the loaded model's.
    """

    path: Path
    file_bytes: int | None
    quantize_s: float | None
    quantized: bool = True
    facts: Mapping[str, str] = field(default_factory=dict)


class LoadedModel(Protocol):
    """One loaded model. Token ids are those of the model's own vocabulary; nothing here handles text."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What was found rather than requested: ``kernel``, ``kv_dtype``, ``device`` and anything else that changes a figure.

        ``device`` is where the weights are, ``cpu`` or ``cuda:N``, several joined by ``+``; on CUDA it is required.
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
        """Wait until the device has finished all submitted work."""


@runtime_checkable
class Batched(Protocol):
    """A loaded model that can answer several sequences together."""

    def generate_batch(self, prompts: Sequence[Sequence[int]], limit: int) -> Iterator[Sequence[int]]:
        """Exactly ``limit`` greedy steps after ``prompts`` of equal length; each yields a token for every prompt.

        The first ``next()`` is the prefill of all of them. At most ``Settings.batch`` prompts.
        """


@runtime_checkable
class Decodes(Protocol):
    """A LoadedModel with several ways to decode, of which one is taken before anything is timed."""

    def decode_by(self, path: str, prompts: Sequence[Sequence[int]], limit: int, positions: int) -> Decoding:
        """Decode from now on in the way called ``path`` (empty: the usual one), and say which it is.

        It is tried on an answer of ``limit`` tokens to ``prompts``, answered together; a sequence takes up to ``positions``
        with its answer. UsageError for a way that there is not.
        """
        ...


@runtime_checkable
class Untimed(Protocol):
    """A loaded model that may run in another form than the one it stands for, at a speed that is not the form's own."""

    @property
    def untimed(self) -> str:
        """Why nothing of it is timed; empty where it runs as what it is."""


@runtime_checkable
class Sliced(Protocol):
    """A loaded model whose ``score`` reads at most ``SCORE_POSITIONS`` at once, and which can read fewer.

    This shows how much that number affects the figures; for a model without it nothing is reported.
    """

    def score_sliced(self, tokens: Sequence[int], first: int, positions: int) -> Iterator[NDArray[np.float32]]:
        """``score`` in forward passes over at most ``positions`` tokens, from 1 to ``SCORE_POSITIONS``."""


@runtime_checkable
class SamplesTogether(Protocol):
    """A loaded model that can sample after several prompts together, faster than after one at a time."""

    def sample_together(
        self, prompts: Sequence[Sequence[int]], limit: int, samplings: Sequence[Sampling], ends: Container[int]
    ) -> Sequence[tuple[int, ...]]:
        """At most ``limit`` tokens after each prompt, up to and including the first of ``ends``, each with its own seed."""


def until_end(tokens: Iterable[int], ends: Container[int]) -> tuple[int, ...]:
    """``tokens`` up to and including the first of ``ends``; no further token is generated."""
    kept = []
    for token in tokens:
        kept.append(token)
        if token in ends:
            break
    return tuple(kept)


@runtime_checkable
class HasModule(Protocol):
    """A loaded model that wraps a torch module, into which adapters can be inserted."""

    @property
    def model(self) -> Any:
        """The module."""


class LoadedModule(Protocol):
    """One loaded module without tokens: it takes an input of its own shape and gives an array."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What was found rather than requested: ``kernel``, ``device`` as in LoadedModel, and anything else that matters."""

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
    """One streamed answer: pieces of text, one per event, each with the seconds from the request until it arrived.

    There is at least one piece; it is empty if the answer was empty. ``tokens`` and ``prompt_tokens`` are the server's counts.
    ``native`` are its own timings of this answer, as of ``Endpoint.native``; empty if there are none, or were not asked for.
    """

    pieces: tuple[str, ...]
    arrivals_s: tuple[float, ...]
    tokens: int | None
    prompt_tokens: int | None
    native: Mapping[str, float] = field(default_factory=dict)


class StreamDroppedError(ModelError):
    """A server closed a connection or a stream before its answer was complete."""


class Endpoint(Protocol):
    """A served model: text in, text out. Requests may be made from several threads at once.

    Each raises ModelError if the server is down, too slow, or answers with an error or nonsense, and StreamDroppedError if the
    server drops the stream.
    """

    @property
    def facts(self) -> Mapping[str, str]:
        """What was found rather than requested: ``kernel`` (the server's own name), the served model, extra request fields."""

    @property
    def artifact(self) -> Artifact | None:
        """The served file, if quantbench itself started the server; else None."""

    @property
    def pid(self) -> int | None:
        """The process below which the server runs, if quantbench itself started it; else None."""

    def answer(self, prompt: str, limit: int, *, full_length: bool = False) -> Streamed:
        """Stream a greedy answer of at most ``limit`` tokens; of exactly as many with ``full_length``, if the server can."""

    def timed(self, prompt: str, limit: int) -> Streamed:
        """An answer of full length, with the server's own timings of it where it counts them. One at a time."""

    def top_tokens(self, prompt: str, k: int) -> Mapping[str, float] | None:
        """Log-probabilities in nats of the ``k`` likeliest next tokens, by their text; None if the server gives none."""

    def native(self, prompt: str, limit: int) -> Mapping[str, float]:
        """The server's own ``prompt_tokens``, ``prefill_s``, ``tokens`` and ``decode_s`` of an answer that is given for them.

        Empty if it gives none, or gives them with the answers that are ``timed``.
        """
