"""AWQ through gptqmodel: weights are scaled by the size of their activations before rounding; AutoAWQ checkpoints load too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantbench.core.scenario import Spec
from quantbench.methods import Artifact, LoadedModel, Settings, method
from quantbench.models.architecture import Architecture
from quantbench.models.footprint import Weights
from quantbench.runtimes.gptqmodel import quantize as gptqmodel
from quantbench.runtimes.gptqmodel.checkpoint import PRECISIONS, held, load_packed
from quantbench.runtimes.gptqmodel.forecast import forecast


@method(
    "awq",
    precisions=PRECISIONS["awq"],
    requires=["torch", "transformers", "accelerate", "gptqmodel"],
    package="gptqmodel",
    reads=["awq"],
    costly="calibrates",
)
@contextmanager
def open_awq(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """Quantized beforehand with activation-aware scales (AWQ), loaded by transformers"""
    yield load_packed(prepare_awq(spec, settings).path, settings, spec.conditions.device)


@open_awq.prepares
def prepare_awq(spec: Spec, settings: Settings) -> Artifact:
    """The AWQ checkpoint."""
    return gptqmodel.prepared(spec, settings)


@open_awq.forecasts
def forecast_awq(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """Packed layers, the rest in 16 bits."""
    return forecast("awq", architecture, precisions)


@open_awq.asks
def awq_recipe(spec: Spec) -> Mapping[str, str]:
    """Calibration and kernel."""
    return gptqmodel.recipe(spec)


@open_awq.holds
def held_awq(quantization: Mapping[str, Any]) -> Sequence[str]:
    """The precision with the checkpoint's bits and group size."""
    return held("awq", quantization)


@open_awq.saves
def save_awq(spec: Spec, settings: Settings, out: Path) -> None:
    """Copy the checkpoint."""
    gptqmodel.saved(prepare_awq(spec, settings), out)
