"""Methods: one file each. A method opens a LoadedModel for a scenario; only methods touch torch or llama_cpp.

A new method is one file here (or an entry point in the group ``quantbench.methods``)::

    @method("hqq", precisions=[W4], requires=["torch", "transformers", "hqq"])
    @contextmanager
    def open_hqq(scenario, settings):
        from hqq.models.hf.base import AutoHQQHFModel      # heavy imports live inside
        ...
        yield TransformersModel(model)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quantbench.errors import MissingDependency, UnsupportedError, unknown_name
from quantbench.job import Checkpoint
from quantbench.registry import Registry
from quantbench.scenario import Precision, Scenario
from quantbench.trace import WeightMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where and how on this machine: the checked files, worker threads, and the context in tokens."""

    checkpoint: Checkpoint
    threads: int
    context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Draw tokens from the full softmax at a temperature, seeded."""

    seed: int
    temperature: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A quantized model on disk and the seconds its quantization once took, without conversion; None: made elsewhere."""

    path: Path
    file_bytes: int
    quantize_s: float | None


class LoadedModel(Protocol):
    """One loaded model. Token ids are those of the model's own vocabulary; nothing here sees text."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What was found rather than asked: ``kernel``, ``kv_dtype`` and whatever else changes a figure."""

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


Opener = Callable[[Scenario, Settings], AbstractContextManager[LoadedModel]]
Preparer = Callable[[Scenario, Settings], Artifact]
Saver = Callable[[Scenario, Settings, Path], None]


@dataclass(slots=True)
class Method:
    """A registered method. ``anchor`` is the variant that its rounds alternate with, in the same runtime."""

    name: str
    about: str
    precisions: tuple[Precision, ...]
    requires: tuple[str, ...]
    extra: str
    anchor: str
    kinds: tuple[str, ...]
    opener: Opener
    preparer: Preparer | None = field(default=None, init=False)
    saver: Saver | None = field(default=None, init=False)

    def precision(self, name: str) -> Precision:
        """The precision of that name; UsageError with the nearest names if the method has none such."""
        for candidate in self.precisions:
            if candidate.name == name:
                return candidate
        raise unknown_name(f"precision of {self.name}", name, (each.name for each in self.precisions))

    def missing(self) -> tuple[str, ...]:
        """Modules that the method needs and that are not installed; looks without importing."""
        return tuple(module for module in self.requires if find_spec(module) is None)

    @property
    def install(self) -> str:
        """The pip line that installs what the method needs."""
        ours = self.opener.__module__.startswith("quantbench.")
        return f"pip install 'quantbench[{self.extra}]'" if ours else f"pip install {' '.join(self.requires)}"

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise MissingDependency or UnsupportedError when this method cannot open ``checkpoint`` here."""
        missing = self.missing()
        if missing:
            raise MissingDependency(f"method {self.name!r} needs {', '.join(missing)}, not installed; {self.install}")
        if checkpoint.kind not in self.kinds:
            raise UnsupportedError(
                f"method {self.name!r} cannot open a {checkpoint.kind} file; give the checkpoint folder it was made from"
            )

    def open(self, scenario: Scenario, settings: Settings) -> AbstractContextManager[LoadedModel]:
        """Open the scenario's variant."""
        self.check(settings.checkpoint)
        return self.opener(scenario, settings)

    def prepares(self, preparer: Preparer) -> Preparer:
        """Decorator: ``preparer`` makes the quantized artifact outside any timing, or finds it in the cache."""
        self.preparer = preparer
        return preparer

    def saves(self, saver: Saver) -> Saver:
        """Decorator: ``saver`` writes the quantized model into a folder, for ``quantbench quantize``."""
        self.saver = saver
        return saver


def method(
    name: str,
    *,
    precisions: Iterable[Precision],
    requires: Iterable[str],
    extra: str = "",
    anchor: str = "torch/fp32",
    kinds: Iterable[str] = ("hf",),
) -> Callable[[Opener], Method]:
    """Register a context-manager function that yields a LoadedModel as a method.

    ``requires`` are module names to look for; ``extra`` is the extra of this package that installs them (default: the
    method's name); ``kinds`` are the checkpoint kinds it opens. The function's docstring says what the method is.
    """

    def register(opener: Opener) -> Method:
        about = (opener.__doc__ or "").strip().splitlines()
        return Method(
            name, about[0] if about else "", tuple(precisions), tuple(requires), extra or name, anchor, tuple(kinds), opener
        )

    return register


METHODS: Registry[Method] = Registry("quantbench.methods", Method, "method")
