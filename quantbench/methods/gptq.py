"""GPTQ through gptqmodel: weights are quantized row by row against calibration text; auto-gptq checkpoints load too."""

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
    "gptq",
    precisions=PRECISIONS["gptq"],
    requires=["torch", "transformers", "gptqmodel", "optimum"],
    package="gptqmodel",
    reads=["gptq"],
    costly="calibrates",
)
@contextmanager
def open_gptq(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """Quantized beforehand against calibration text (GPTQ), loaded by transformers"""
    yield load_packed(prepare_gptq(spec, settings).path, settings, spec.conditions.device)


@open_gptq.prepares
def prepare_gptq(spec: Spec, settings: Settings) -> Artifact:
    """The GPTQ checkpoint."""
    return gptqmodel.prepared(spec, settings)


@open_gptq.forecasts
def forecast_gptq(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """Packed layers, the rest in 16 bits."""
    return forecast("gptq", architecture, precisions)


@open_gptq.asks
def gptq_recipe(spec: Spec) -> Mapping[str, str]:
    """Calibration and kernel."""
    return gptqmodel.recipe(spec)


@open_gptq.holds
def held_gptq(quantization: Mapping[str, Any]) -> Sequence[str]:
    """The precision with the checkpoint's bits and group size."""
    return held("gptq", quantization)


@open_gptq.saves
def save_gptq(spec: Spec, settings: Settings, out: Path) -> None:
    """Copy the checkpoint."""
    gptqmodel.saved(prepare_gptq(spec, settings), out)
