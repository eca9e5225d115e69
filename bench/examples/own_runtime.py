"""A runtime of one's own, in one file, with a method on it: a model that repeats what it was told last.

Install it with two entry points; the plan then knows its KV cache, and its version is stored with every run::

    [project.entry-points."quantbench.runtimes"]
    parrot = "own_runtime"

    [project.entry-points."quantbench.methods"]
    parrot = "own_runtime"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from quantbench.core.protocols import Sampling
from quantbench.core.scenario import Precision, Spec
from quantbench.core.trace import WeightMemory
from quantbench.methods import LoadedModel, Settings, method
from quantbench.models.architecture import Architecture
from quantbench.models.config import read_architecture
from quantbench.models.footprint import Weights
from quantbench.runtimes import Runtime


def kv_cache_bytes(architecture: Architecture, *, context: int, batch: int, dtype: str) -> int:
    """One byte a position: it remembers a token's last byte."""
    return batch * context


PARROT = Runtime(
    name="parrot",
    about="repeats the last token",
    packages=("parrot-engine",),
    kv_cache_bytes=kv_cache_bytes,
    activation_bytes=lambda architecture, *, context, batch, dtype: 0,  # noqa: ARG005 - it computes nothing
)


class Parrot:
    """A LoadedModel that says its prompt's last token again and again."""

    def __init__(self, vocabulary: int) -> None:
        """It knows how many tokens there are, and nothing else."""
        self._vocabulary = vocabulary

    @property
    def facts(self) -> Mapping[str, str]:
        """Where it runs and what runs it."""
        return {"kernel": "parrot", "device": "cpu"}

    def generate(self, prompt: Sequence[int], limit: int, sampling: Sampling | None = None) -> Iterator[int]:
        """The last token, ``limit`` times."""
        return (prompt[-1] for _ in range(limit))

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[Any]:
        """Logits that favour the token just seen."""
        import numpy as np

        logits = np.zeros((len(tokens) - first, self._vocabulary), np.float32)
        logits[np.arange(len(logits)), list(tokens[first:])] = 1.0
        yield logits

    def memory(self) -> WeightMemory:
        """It has a byte for each token."""
        return WeightMemory(by_kind={"feathers": self._vocabulary})

    def synchronize(self) -> None:
        """Nothing to wait for."""


@method("parrot", precisions=[Precision(name="int8", bits=8)], requires=["numpy"], runtime="parrot")
@contextmanager
def open_parrot(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """Repeats the last token"""
    yield Parrot(read_architecture(str(settings.checkpoint.path)).vocabulary)


@open_parrot.forecasts
def forecast_parrot(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """A byte for each token."""
    return {each: Weights(weight_bytes=architecture.vocabulary, dtype="fp16") for each in precisions}
