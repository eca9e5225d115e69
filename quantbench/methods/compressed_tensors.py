"""compressed-tensors: checkpoints as they were published for vLLM, in whole numbers, FP8, NVFP4 and MXFP4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from quantbench.core.scenario import Spec
from quantbench.methods import LoadedModel, Settings, method
from quantbench.models.architecture import Architecture
from quantbench.models.footprint import Weights
from quantbench.runtimes.transformers import compressed_schemes
from quantbench.runtimes.transformers.compressed_tensors import load_published


@method(
    "compressed-tensors",
    precisions=compressed_schemes.PRECISIONS,
    requires=["torch", "transformers", "compressed_tensors"],
    reads=["compressed-tensors"],
    published=True,
)
@contextmanager
def open_compressed_tensors(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """Published in compressed-tensors' formats; decompressed, and then not timed, where no kernel runs them"""
    yield load_published(settings, spec.conditions.device, spec.variant.precision)


@open_compressed_tensors.forecasts
def forecast_compressed_tensors(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """Layers as the checkpoint's config.json says they are stored, the rest in its dtype."""
    return {each: compressed_schemes.forecast(architecture, each) for each in precisions}


@open_compressed_tensors.holds
def held_compressed_tensors(quantization: Mapping[str, Any]) -> Sequence[str]:
    """The precision with the checkpoint's scheme."""
    return compressed_schemes.held(quantization)
