"""What would fit: the footprint of every variant of an architecture, from shapes alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from quantbench.core.errors import UsageError, unknown_name
from quantbench.core.gpus import chosen_gpus
from quantbench.core.machine import memory_limit
from quantbench.core.outside import expanded, is_file
from quantbench.core.scenario import Conditions, Variant
from quantbench.core.units import format_bytes
from quantbench.methods import METHODS
from quantbench.models import config
from quantbench.models.architecture import Architecture
from quantbench.models.footprint import ELEMENT_BYTES, Weights, dense_bytes
from quantbench.runtimes import RUNTIMES, Runtime, reader_of

DEFAULT_CONTEXT = 4096
_MOST = 10**12
_NOT_PREDICTED = "this method cannot forecast the size of its weights"

_LONGEST = 2**20
"""Used where a configuration sets no maximum context length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Something with memory that a model can run in."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a model holds besides its weights: ``batch`` sequences of ``context`` tokens, keys and values in ``kv_dtype``.

    An empty ``kv_dtype`` stands for the method's own.
    """

    context: int = DEFAULT_CONTEXT
    batch: int = 1
    kv_dtype: str = ""

    def __post_init__(self) -> None:
        """Raise UsageError for sizes that no model can hold."""
        for name in ("context", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give a whole number of at least 1")
            if getattr(self, name) > _MOST:
                raise UsageError(f"{name} is above {_MOST}, which no model holds; give a smaller one")
        if self.kv_dtype and self.kv_dtype not in ELEMENT_BYTES:
            raise unknown_name("KV dtype", self.kv_dtype, ELEMENT_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The predicted footprint of one variant. Bytes are None where they are unknown, with the reason in ``note``.

    ``context`` (tokens), ``batch`` and ``kv_dtype`` are what the cache is planned for. ``model_note`` applies to all variants
    of the model: for example, that the checkpoint is quantized already.
    ``least_weight_bytes`` and ``most_weight_bytes`` equal ``weight_bytes`` where the shapes are known, and bound it where they
    had to be assumed. ``peak_bytes`` is weights, KV cache and activations together. ``fits_on`` says for each device whether
    that fits its memory, None where the bounds leave it open; ``largest_context`` is the longest context, in tokens, that
    certainly fits on the largest of them.
    """

    model: str
    method: str
    precision: str
    parameters: int
    context: int
    batch: int
    kv_dtype: str
    weight_bytes: int | None
    least_weight_bytes: int | None
    most_weight_bytes: int | None
    file_bytes: int | None
    kv_cache_bytes: int | None
    activation_bytes: int | None
    peak_bytes: int | None
    bits_per_weight: float | None
    compression_fp32: float | None
    compression_fp16: float | None
    fits: bool | None
    fits_on: Mapping[str, bool | None]
    largest_context: int | None
    note: str
    model_note: str

    @property
    def variant(self) -> str:
        """``method/precision``."""
        return f"{self.method}/{self.precision}"

    @property
    def is_exact(self) -> bool:
        """Whether the weights follow from known shapes."""
        return self.least_weight_bytes == self.most_weight_bytes

    @property
    def most_peak_bytes(self) -> int | None:
        """``peak_bytes`` at the upper bound of the weights."""
        return self._peak(self.most_weight_bytes)

    def fits_within(self, memory_bytes: int) -> bool | None:
        """Whether the peak is within ``memory_bytes``; None where that is unknown."""
        least, most = self._peak(self.least_weight_bytes), self.most_peak_bytes
        if least is None or most is None or least <= memory_bytes < most:
            return None
        return most <= memory_bytes

    def refusal(self, device: Device) -> str:
        """Why it cannot run on ``device``, with the arithmetic; empty where it fits or that is unknown."""
        if self.fits_within(device.memory_bytes) is not False or self.peak_bytes is None:
            return ""
        least = f", {format_bytes(self._peak(self.least_weight_bytes) or 0)} at least" if not self.is_exact else ""
        takes = f"{self.variant} of {self.model} takes {format_bytes(self.peak_bytes)}{least} ({self.arithmetic})"
        note = "" if self.is_exact else f"; {self.model_note}"
        return f"{takes} and {device.name} has {format_bytes(device.memory_bytes)}{note}"

    def _peak(self, weight_bytes: int | None) -> int | None:
        if weight_bytes is None or self.weight_bytes is None or self.peak_bytes is None:
            return None
        return self.peak_bytes - self.weight_bytes + weight_bytes

    @property
    def arithmetic(self) -> str:
        """The sum behind ``peak_bytes``."""
        parts = {"weights": self.weight_bytes, "KV cache": self.kv_cache_bytes, "activations": self.activation_bytes}
        return " + ".join(f"{name} {format_bytes(count)}" for name, count in parts.items() if count is not None)


def read_architecture(name: str, *, any_age: bool = False) -> Architecture:
    """The architecture of the model called ``name``: a built-in one, a config.json, a folder, a ``.gguf`` file or a hub id.

    From a hub repository only the config.json is fetched; with ``any_age`` a cached, possibly outdated one will do. Raises
    UsageError or ModelError where there is none.
    """
    path = expanded(name)
    reader = reader_of(path)
    if reader and reader.read_architecture and is_file(path):
        return reader.read_architecture(path.absolute())
    return config.read_architecture(name, any_age=any_age)


def device_here(device: str) -> Device | None:
    """The memory behind a device that a scenario asks for, None where it is unknown; UsageError where there is no such GPU.

    ``cuda`` stands for all GPUs that this process may use, as a model may be spread over them.
    """
    if device == "cpu":
        return Device(name="this machine", memory_bytes=memory_limit())
    gpus = chosen_gpus(device)
    sizes = [gpu.memory_bytes for gpu in gpus if gpu.memory_bytes is not None]
    counts = Counter(gpu.name for gpu in gpus)
    name = " + ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items())
    return Device(name=name, memory_bytes=sum(sizes)) if len(sizes) == len(gpus) else None


def room_here(conditions: Conditions, method: str) -> Device | None:
    """The memory that a variant of a method may fill: the device's, and the host's where a part of it may stay there."""
    here = device_here(conditions.device)
    if here is None or not conditions.n_gpu_layers or not runtime_of(method).offloads:
        return here
    return Device(name=f"{here.name} with this machine", memory_bytes=here.memory_bytes + memory_limit())


def workload(architecture: Architecture, *, context: int | None, batch: int = 1, kv_dtype: str = "") -> Workload:
    """The workload asked for; without a context 4096 tokens, or as many as the model was made for if that is less."""
    usual = min(DEFAULT_CONTEXT, architecture.context or DEFAULT_CONTEXT)
    return Workload(context=usual if context is None else context, batch=batch, kv_dtype=kv_dtype)


def plan(
    architecture: Architecture, variants: Iterable[Variant], workload: Workload, devices: Sequence[Device]
) -> list[Planned]:
    """The footprint of each variant in order; each method is asked once for all its precisions."""
    wanted: dict[str, list[str]] = {}
    for variant in variants:
        wanted.setdefault(variant.method, []).append(variant.precision)
    return [
        planned(architecture, Variant(method=method, precision=precision), weights, workload, devices)
        for method, precisions in wanted.items()
        for precision, weights in forecast(architecture, method, precisions).items()
    ]


def published(architecture: Architecture) -> list[Variant]:
    """What a checkpoint with this configuration is, if it was published in a format that only a method of its own opens."""
    found = architecture.config.get("quantization_config")
    if not isinstance(found, Mapping):
        return []
    return [variant for method in METHODS if method.published for variant in method.held(found)]


def forecast(architecture: Architecture, method: str, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """The size of the weights at each precision of a method; a ``.gguf`` file suits only methods that open one."""
    reason = METHODS[method].cannot_open("gguf") if architecture.gguf else ""
    if reason:
        return {each: Weights(weight_bytes=None, note=reason) for each in precisions}
    forecaster = METHODS[method].forecaster
    if forecaster is None:
        return {each: Weights(weight_bytes=None, note=_NOT_PREDICTED) for each in precisions}
    return forecaster(architecture, precisions)


def planned(
    architecture: Architecture, variant: Variant, weights: Weights, workload: Workload, devices: Sequence[Device]
) -> Planned:
    """The footprint of one variant whose ``weights`` are known."""
    loaded, runtime = weights.weight_bytes, runtime_of(variant.method)
    dtype = workload.kv_dtype or runtime.kv_dtype or weights.dtype
    cache, busy = _beside_weights(architecture, weights, runtime, context=workload.context, batch=workload.batch, dtype=dtype)
    least, most = (None if loaded is None else math.ceil(loaded * bound) for bound in architecture.bounds)
    room = max((device.memory_bytes for device in devices), default=None)
    footprint = Planned(
        model=architecture.name, method=variant.method, precision=variant.precision, parameters=architecture.parameters,
        context=workload.context, batch=workload.batch, kv_dtype=dtype, weight_bytes=loaded,
        least_weight_bytes=least, most_weight_bytes=most, file_bytes=weights.file_bytes, kv_cache_bytes=cache,
        activation_bytes=busy, peak_bytes=None if loaded is None or cache is None or busy is None else loaded + cache + busy,
        bits_per_weight=8 * loaded / architecture.parameters if loaded else None,
        compression_fp32=dense_bytes(architecture, "fp32") / loaded if loaded else None,
        compression_fp16=dense_bytes(architecture, "fp16") / loaded if loaded else None,
        fits=None, fits_on={},
        largest_context=None if room is None else largest_context(
            architecture, replace(weights, weight_bytes=most), runtime, room, batch=workload.batch, dtype=dtype
        ),
        note="; ".join(filter(None, (weights.note, _beyond(architecture, workload)))), model_note=architecture.note,
    )  # fmt: skip
    fits_on = {} if loaded is None else {device.name: footprint.fits_within(device.memory_bytes) for device in devices}
    return replace(footprint, fits=None if room is None else footprint.fits_within(room), fits_on=fits_on)


def runtime_of(method: str) -> Runtime:
    """The runtime that runs the models of a method."""
    return RUNTIMES[METHODS[method].runtime]


def _beside_weights(
    architecture: Architecture, weights: Weights, runtime: Runtime, *, context: int, batch: int, dtype: str
) -> tuple[int | None, int | None]:
    """Bytes of keys and values, and of activations; None where the runtime cannot forecast them."""
    cache, busy = runtime.kv_cache_bytes, runtime.activation_bytes
    return (
        cache(architecture, context=context, batch=batch, dtype=dtype) if cache else None,
        busy(architecture, context=context, batch=batch, dtype=weights.dtype) if busy else None,
    )


def largest_context(
    architecture: Architecture, weights: Weights, runtime: Runtime, budget: int, *, batch: int, dtype: str
) -> int | None:
    """The most positions for which weights, KV cache and activations stay within ``budget`` bytes.

    Never more than the model was made for; 0 where not even one fits; None where the memory that it takes is unknown.
    """
    loaded = weights.weight_bytes
    if loaded is None or runtime.kv_cache_bytes is None or runtime.activation_bytes is None:
        return None

    def fits(context: int) -> bool:
        beside = _beside_weights(architecture, weights, runtime, context=context, batch=batch, dtype=dtype)
        return loaded + sum(filter(None, beside)) <= budget

    low, high = 0, architecture.context or _LONGEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _beyond(architecture: Architecture, workload: Workload) -> str:
    longest = architecture.context
    if longest is None or workload.context <= longest:
        return ""
    return f"the model was made for {longest} tokens and {workload.context} were asked for"
