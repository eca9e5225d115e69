"""What would fit: the footprint of every variant of an architecture, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantbench.architecture import Architecture
from quantbench.errors import UsageError, unknown_name
from quantbench.footprint import ELEMENT_BYTES, Weights, activation_bytes, dense_bytes, kv_cache_bytes, largest_context
from quantbench.methods import METHODS
from quantbench.scenario import Variant
from quantbench.units import format_bytes

DEFAULT_CONTEXT = 4096
_NOT_PREDICTED = "this method says nothing of what its weights will take"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Something with memory that a model can run in."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a model is to hold besides its weights: ``batch`` sequences of ``context`` tokens, keys and values in ``kv_dtype``.

    An empty ``kv_dtype`` stands for what the method itself uses.
    """

    context: int = DEFAULT_CONTEXT
    batch: int = 1
    kv_dtype: str = ""

    def __post_init__(self) -> None:
        """Raise UsageError for what no model can hold."""
        for name in ("context", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give a whole number from 1 on")
        if self.kv_dtype and self.kv_dtype not in ELEMENT_BYTES:
            raise unknown_name("KV dtype", self.kv_dtype, ELEMENT_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The predicted footprint of one variant. Bytes are None where they cannot be told, with the reason in ``note``.

    ``peak_bytes`` is weights, KV cache and activations together. ``fits_on`` says of each device whether that is within its
    memory; ``largest_context`` is the longest that fits on the largest of them, in tokens.
    """

    model: str
    method: str
    precision: str
    parameters: int
    weight_bytes: int | None
    file_bytes: int | None
    kv_cache_bytes: int | None
    activation_bytes: int | None
    peak_bytes: int | None
    bits_per_weight: float | None
    compression_fp32: float | None
    compression_fp16: float | None
    fits: bool | None
    fits_on: Mapping[str, bool]
    largest_context: int | None
    note: str

    @property
    def variant(self) -> str:
        """``method/precision``."""
        return f"{self.method}/{self.precision}"

    @property
    def arithmetic(self) -> str:
        """The sum behind ``peak_bytes``."""
        parts = {"weights": self.weight_bytes, "KV cache": self.kv_cache_bytes, "activations": self.activation_bytes}
        return " + ".join(f"{name} {format_bytes(count)}" for name, count in parts.items() if count is not None)


def plan(
    architecture: Architecture, variants: Iterable[Variant], workload: Workload, devices: Sequence[Device]
) -> list[Planned]:
    """The footprint of each variant in order; each method is asked once for all its precisions."""
    wanted: dict[str, list[str]] = {}
    for variant in variants:
        wanted.setdefault(variant.method, []).append(variant.precision)
    return [
        _planned(architecture, Variant(method=method, precision=precision), weights, workload, devices)
        for method, precisions in wanted.items()
        for precision, weights in forecast(architecture, method, precisions).items()
    ]


def forecast(architecture: Architecture, method: str, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """What the weights of each precision of a method will take."""
    forecaster = METHODS[method].forecaster
    if forecaster is None:
        return {each: Weights(weight_bytes=None, note=_NOT_PREDICTED) for each in precisions}
    return forecaster(architecture, precisions)


def _planned(
    architecture: Architecture, variant: Variant, weights: Weights, workload: Workload, devices: Sequence[Device]
) -> Planned:
    loaded, runtime = weights.weight_bytes, weights.runtime
    dtype = workload.kv_dtype or ("fp16" if runtime == "llama.cpp" else weights.dtype)
    cache = kv_cache_bytes(architecture, context=workload.context, batch=workload.batch, dtype=dtype, runtime=runtime)
    busy = activation_bytes(architecture, context=workload.context, batch=workload.batch, dtype=weights.dtype, runtime=runtime)
    peak = None if loaded is None else loaded + cache + busy
    fits_on = {} if peak is None else {device.name: peak <= device.memory_bytes for device in devices}
    room = max((device.memory_bytes for device in devices), default=None)
    return Planned(
        model=architecture.name, method=variant.method, precision=variant.precision, parameters=architecture.parameters,
        weight_bytes=loaded, file_bytes=weights.file_bytes, kv_cache_bytes=cache, activation_bytes=busy, peak_bytes=peak,
        bits_per_weight=8 * loaded / architecture.parameters if loaded else None,
        compression_fp32=dense_bytes(architecture, "fp32") / loaded if loaded else None,
        compression_fp16=dense_bytes(architecture, "fp16") / loaded if loaded else None,
        fits=any(fits_on.values()) if fits_on else None, fits_on=fits_on,
        largest_context=None if room is None else largest_context(
            architecture, weights, room, batch=workload.batch, dtype=dtype
        ),
        note="; ".join(filter(None, (weights.note, _beyond(architecture, workload)))),
    )  # fmt: skip


def _beyond(architecture: Architecture, workload: Workload) -> str:
    longest = architecture.context
    if longest is None or workload.context <= longest:
        return ""
    return f"the model was made for {longest} tokens and {workload.context} were asked for"
