"""Methods: one file each. A method opens a LoadedModel for a spec.

A new method is one file here (or an entry point in the group ``quantbench.methods``)::

    @method("hqq", precisions=[W4], requires=["torch", "transformers", "hqq"])
    @contextmanager
    def open_hqq(spec, settings):
        from hqq.models.hf.base import AutoHQQHFModel      # heavy imports go inside the function
        ...
        yield TransformersModel(model)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from quantbench.core.errors import MissingDependency, UnsupportedError, unknown_name
from quantbench.core.install import install_hint
from quantbench.core.job import Checkpoint
from quantbench.core.protocols import (
    SCORE_POSITIONS,
    Artifact,
    Batched,
    Decodes,
    Endpoint,
    HasModule,
    LoadedModel,
    LoadedModule,
    SamplesTogether,
    Sampling,
    Settings,
    Sliced,
    StreamDroppedError,
    Streamed,
    Untimed,
    until_end,
)
from quantbench.core.registry import Registry
from quantbench.core.scenario import Precision, Spec, Variant
from quantbench.models.architecture import Architecture
from quantbench.models.footprint import Weights

__all__ = [
    "METHODS", "SCORE_POSITIONS", "Artifact", "Batched", "Decodes", "Endpoint", "HasModule", "LoadedModel", "LoadedModule",
    "Method",
    "SamplesTogether", "Sampling", "Settings", "Sliced", "StreamDroppedError", "Streamed", "Untimed", "method", "until_end",
]  # fmt: skip

Subject = LoadedModel | LoadedModule | Endpoint
"""What a method may open."""

Opener = Callable[[Spec, Settings], AbstractContextManager[Subject]]
Recipe = Callable[[Spec], Mapping[str, str]]
Preparer = Callable[[Spec, Settings], Artifact]
Saver = Callable[[Spec, Settings, Path], None]
Forecaster = Callable[[Architecture, Sequence[str]], Mapping[str, Weights]]
"""Predicts the weight bytes of each named precision from an architecture; reads no weights and does not import torch."""

Auditor = Callable[[Settings, Checkpoint], Mapping[str, str]]
"""What is found in an artifact's files beside those of its original, as facts; reads weights and runs nothing."""

Holder = Callable[[Mapping[str, Any]], Sequence[str]]
"""The precisions that a checkpoint with a ``quantization_config`` may have."""

_KINDS: Mapping[str, str] = {
    "hf": "a checkpoint folder", "gguf": "a .gguf file", "module": "a module without tokens", "server": "a server's URL",
}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Method:
    """A registered method. ``anchor`` is the variant that its rounds alternate with, in the same runtime.

    A ``published`` one quantizes nothing: it opens only what was quantized elsewhere.
    """

    name: str
    about: str
    precisions: tuple[Precision, ...]
    requires: tuple[str, ...]
    extra: str
    runtime: str
    package: str
    anchor: str
    kinds: tuple[str, ...]
    reads: tuple[str, ...]
    endpoint: bool
    published: bool
    costly: str
    costly_on_cpu: str
    runtime_env: Mapping[str, Any]
    opener: Opener
    preparer: Preparer | None = field(default=None, init=False)
    saver: Saver | None = field(default=None, init=False)
    forecaster: Forecaster | None = field(default=None, init=False)
    recipe: Recipe = field(default=lambda _: {}, init=False)
    holder: Holder | None = field(default=None, init=False)
    auditor: Auditor | None = field(default=None, init=False)

    def precision(self, name: str) -> Precision:
        """The precision of that name; UsageError with the nearest names if the method has no such precision."""
        for candidate in self.precisions:
            if candidate.name == name:
                return candidate
        raise unknown_name(f"precision of {self.name}", name, (each.name for each in self.precisions))

    def missing(self) -> tuple[str, ...]:
        """Modules that the method needs and that are not installed; checked without importing them."""
        return tuple(module for module in self.requires if find_spec(module) is None)

    @property
    def install(self) -> str:
        """How to install what the method needs, with pip."""
        ours = self.opener.__module__.startswith("quantbench.")
        return install_hint(self.extra) if ours else f"pip install {' '.join(self.requires)}"

    def cannot_open(self, kind: str) -> str:
        """Why this method cannot open a kind of checkpoint (``hf``, ``gguf``, ``module``, ``server``); empty if it can."""
        if kind in self.kinds:
            return ""
        kinds = " or ".join(_KINDS[each] for each in self.kinds)
        return f"method {self.name!r} cannot open {_KINDS[kind]}; give it {kinds}"

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise MissingDependency or UnsupportedError if this method cannot open ``checkpoint`` here."""
        missing = self.missing()
        if missing:
            raise MissingDependency(f"method {self.name!r} needs {', '.join(missing)}, not installed; {self.install}")
        if reason := self.cannot_open(checkpoint.kind):
            raise UnsupportedError(reason)
        if checkpoint.quantized and checkpoint.quantized not in self.reads:
            able = " or ".join(each.name for each in METHODS if checkpoint.quantized in each.reads)
            raise UnsupportedError(
                f"method {self.name!r} cannot open a checkpoint that is already quantized ({checkpoint.quantized}); "
                + (f"use {able}, or give the unquantized checkpoint" if able else "give the unquantized checkpoint")
            )

        if self.published and not checkpoint.quantized:
            raise UnsupportedError(
                f"method {self.name!r} opens only what was published quantized, and {checkpoint.name} is not; quantbench makes "
                "no such checkpoint, so give one, or use another method"
            )

    def held(self, quantization: Mapping[str, Any]) -> Sequence[Variant]:
        """The variants of this method that a checkpoint quantized elsewhere may be, by its ``quantization_config``."""
        if quantization.get("quant_method") not in self.reads:
            return ()
        names = self.holder(quantization) if self.holder else [each.name for each in self.precisions]
        return tuple(Variant(method=self.name, precision=name) for name in names)

    def prepare(self, spec: Spec, settings: Settings) -> Artifact | None:
        """The artifact that the spec's variant is opened from, made or taken from the cache; None if it needs none."""
        self.check(settings.checkpoint)
        return self.preparer(spec, settings) if self.preparer else None

    def audit(self, settings: Settings, original: Checkpoint | None) -> Mapping[str, str]:
        """What is found in the files beside those of the original that they are an artifact of; nothing without one."""
        return self.auditor(settings, original) if self.auditor and original else {}

    def open(self, spec: Spec, settings: Settings) -> AbstractContextManager[LoadedModel]:
        """Open the spec's variant of a language model."""
        self.check(settings.checkpoint)
        return cast("AbstractContextManager[LoadedModel]", self.opener(spec, settings))

    def open_module(self, spec: Spec, settings: Settings) -> AbstractContextManager[LoadedModule]:
        """Open the spec's variant of a module without tokens."""
        self.check(settings.checkpoint)
        return cast("AbstractContextManager[LoadedModule]", self.opener(spec, settings))

    def open_endpoint(self, spec: Spec, settings: Settings) -> AbstractContextManager[Endpoint]:
        """Open the endpoint that serves the spec's model."""
        self.check(settings.checkpoint)
        return cast("AbstractContextManager[Endpoint]", self.opener(spec, settings))

    def asks(self, recipe: Recipe) -> Recipe:
        """Decorator: ``recipe`` returns what else, besides the spec, changes what is measured; it becomes part of the key."""
        self.recipe = recipe
        return recipe

    def holds(self, holder: Holder) -> Holder:
        """Decorator: ``holder`` narrows the precisions that a checkpoint may have which was quantized elsewhere."""
        self.holder = holder
        return holder

    def audits(self, auditor: Auditor) -> Auditor:
        """Decorator: ``auditor`` compares the files of a published artifact with those of its original."""
        self.auditor = auditor
        return auditor

    def prepares(self, preparer: Preparer) -> Preparer:
        """Decorator: ``preparer`` makes the quantized artifact outside any timing, or takes it from the cache."""
        self.preparer = preparer
        return preparer

    def forecasts(self, forecaster: Forecaster) -> Forecaster:
        """Decorator: ``forecaster`` predicts the weight bytes of each requested precision."""
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
    runtime: str = "transformers",
    package: str = "",
    anchor: str = "torch/fp32",
    kinds: Iterable[str] = ("hf",),
    reads: Iterable[str] = (),
    endpoint: bool = False,
    published: bool = False,
    costly: str = "",
    costly_on_cpu: str = "",
    runtime_env: Mapping[str, Any] | None = None,
) -> Callable[[Opener], Method]:
    """Register a context-manager function that yields a LoadedModel as a method.

    ``requires`` are the module names that must be importable; ``extra`` is the extra of this package that installs them
    (default: the method's name); ``runtime`` is the name of the runtime, ``package`` the distribution that provides the kernels
    (default: named like the extra); ``kinds`` are the checkpoint kinds it opens, ``reads`` the quantization methods whose
    checkpoints it loads as they are, and if ``published`` all that it loads; an ``endpoint`` yields an Endpoint instead.

    A ``costly`` method (a verb for what takes long) is measured on the user's own model only if it is named; a method that is
    ``costly_on_cpu`` (the reason) only if it is named or runs on a GPU. ``runtime_env`` is the environment that Ray gives its
    jobs on a cluster, such as ``{"pip": ["vllm"]}``, where what it needs conflicts with the rest. The first line of the
    function's docstring describes the method to users.
    """

    def register(opener: Opener) -> Method:
        about = (opener.__doc__ or "").strip().splitlines()
        return Method(
            name=name, about=about[0] if about else "", precisions=tuple(precisions), requires=tuple(requires),
            extra=extra or name, runtime=runtime, package=package or extra or name, anchor=anchor, kinds=tuple(kinds),
            reads=tuple(reads), endpoint=endpoint, published=published, costly=costly, costly_on_cpu=costly_on_cpu,
            runtime_env=runtime_env or {}, opener=opener,
        )  # fmt: skip

    return register


METHODS: Registry[Method] = Registry("quantbench.methods", Method, "method")
