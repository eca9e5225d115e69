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
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from quantbench.architecture import Architecture
from quantbench.errors import MissingDependency, UnsupportedError, unknown_name
from quantbench.footprint import Weights
from quantbench.job import Checkpoint
from quantbench.registry import Registry
from quantbench.scenario import Precision, Scenario
from quantbench.trace import WeightMemory

if TYPE_CHECKING:
    from typing import Any

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
    """A model made ready on disk, and the seconds that its quantization, pruning or training once took, without conversion.

    ``quantize_s`` is None where it was made elsewhere, or not at all; ``quantized`` is False where it is quantized on load.
    """

    path: Path
    file_bytes: int
    quantize_s: float | None
    quantized: bool = True


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


class Endpoint(Protocol):
    """A served model: text in, text out. Requests may be made from several threads at once.

    Each raises ModelError when the server is down, slow, drops the stream or answers with an error.
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


Subject = LoadedModel | LoadedModule | Endpoint
"""What a method may open."""

Opener = Callable[[Scenario, Settings], AbstractContextManager[Subject]]
Recipe = Callable[[Scenario], Mapping[str, str]]
Preparer = Callable[[Scenario, Settings], Artifact]
Saver = Callable[[Scenario, Settings, Path], None]
Forecaster = Callable[[Architecture, Sequence[str]], Mapping[str, Weights]]
"""From an architecture and names of precisions to what the weights of each will take; reads no weight, imports no torch."""


_KINDS: Mapping[str, str] = {
    "hf": "a checkpoint folder", "gguf": "a .gguf file", "module": "a module without tokens", "server": "a server's URL",
}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Method:
    """A registered method. ``anchor`` is the variant that its rounds alternate with, in the same runtime."""

    name: str
    about: str
    precisions: tuple[Precision, ...]
    requires: tuple[str, ...]
    extra: str
    anchor: str
    kinds: tuple[str, ...]
    reads: tuple[str, ...]
    endpoint: bool
    opener: Opener
    preparer: Preparer | None = field(default=None, init=False)
    saver: Saver | None = field(default=None, init=False)
    forecaster: Forecaster | None = field(default=None, init=False)
    recipe: Recipe = field(default=lambda _: {}, init=False)

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

    def cannot_open(self, kind: str) -> str:
        """Why this method opens no checkpoint of a kind (``hf``, ``gguf``, ``module``, ``server``); empty where it does."""
        if kind in self.kinds:
            return ""
        kinds = " or ".join(_KINDS[each] for each in self.kinds)
        return f"method {self.name!r} cannot open {_KINDS[kind]}; give it {kinds}"

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise MissingDependency or UnsupportedError when this method cannot open ``checkpoint`` here."""
        missing = self.missing()
        if missing:
            raise MissingDependency(f"method {self.name!r} needs {', '.join(missing)}, not installed; {self.install}")
        if reason := self.cannot_open(checkpoint.kind):
            raise UnsupportedError(reason)
        if checkpoint.quantized and checkpoint.quantized not in self.reads:
            able = " or ".join(each.name for each in METHODS if checkpoint.quantized in each.reads)
            raise UnsupportedError(
                f"method {self.name!r} cannot open a checkpoint that is quantized already ({checkpoint.quantized}); "
                + (f"ask for {able}, or give the unquantized checkpoint" if able else "give the unquantized checkpoint")
            )

    def open(self, scenario: Scenario, settings: Settings) -> AbstractContextManager[LoadedModel]:
        """Open the scenario's variant of a language model."""
        self.check(settings.checkpoint)
        return cast("AbstractContextManager[LoadedModel]", self.opener(scenario, settings))

    def open_module(self, scenario: Scenario, settings: Settings) -> AbstractContextManager[LoadedModule]:
        """Open the scenario's variant of a module without tokens."""
        self.check(settings.checkpoint)
        return cast("AbstractContextManager[LoadedModule]", self.opener(scenario, settings))

    def open_endpoint(self, scenario: Scenario, settings: Settings) -> AbstractContextManager[Endpoint]:
        """Open the endpoint that serves the scenario's model."""
        self.check(settings.checkpoint)
        return cast("AbstractContextManager[Endpoint]", self.opener(scenario, settings))

    def asks(self, recipe: Recipe) -> Recipe:
        """Decorator: ``recipe`` says what the method asks besides the scenario and changes what is measured, for its key."""
        self.recipe = recipe
        return recipe

    def prepares(self, preparer: Preparer) -> Preparer:
        """Decorator: ``preparer`` makes the quantized artifact outside any timing, or finds it in the cache."""
        self.preparer = preparer
        return preparer

    def forecasts(self, forecaster: Forecaster) -> Forecaster:
        """Decorator: ``forecaster`` predicts the bytes of the weights of each precision asked for."""
        self.forecaster = forecaster
        return forecaster

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
    reads: Iterable[str] = (),
    endpoint: bool = False,
) -> Callable[[Opener], Method]:
    """Register a context-manager function that yields a LoadedModel as a method.

    ``requires`` are module names to look for; ``extra`` is the extra of this package that installs them (default: the
    method's name); ``kinds`` are the checkpoint kinds it opens, ``reads`` the quantization methods whose checkpoints it loads
    as they are; an ``endpoint`` yields an Endpoint instead. The function's docstring says what the method is.
    """

    def register(opener: Opener) -> Method:
        about = (opener.__doc__ or "").strip().splitlines()
        return Method(
            name=name, about=about[0] if about else "", precisions=tuple(precisions), requires=tuple(requires),
            extra=extra or name, anchor=anchor, kinds=tuple(kinds), reads=tuple(reads), endpoint=endpoint, opener=opener,
        )  # fmt: skip

    return register


METHODS: Registry[Method] = Registry("quantbench.methods", Method, "method")
