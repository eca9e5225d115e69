"""GPTQ: weights quantized row by row against calibration text, through gptqmodel; its checkpoints and auto-gptq's load too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from quantbench.architecture import Architecture
from quantbench.footprint import Weights
from quantbench.methods import Artifact, LoadedModel, Settings, method
from quantbench.methods import _gptqmodel as gptqmodel
from quantbench.methods._packed import load_packed
from quantbench.methods._packed_forecast import forecast
from quantbench.scenario import Precision, Scenario

INT8 = Precision(name="int8", bits=8, title="INT8, groups of 128")
INT4_G128 = Precision(name="int4-g128", bits=4, title="INT4, groups of 128")
INT4_G64 = Precision(name="int4-g64", bits=4, title="INT4, groups of 64", usual=False)
INT4_G32 = Precision(name="int4-g32", bits=4, title="INT4, groups of 32", usual=False)
INT3 = Precision(name="int3", bits=3, title="INT3, groups of 128", usual=False)
INT2 = Precision(name="int2", bits=2, title="INT2, groups of 128", usual=False)


@method(
    "gptq",
    precisions=[INT8, INT4_G128, INT4_G64, INT4_G32, INT3, INT2],
    requires=["torch", "transformers", "gptqmodel", "optimum"],
    reads=["gptq"],
    costly="calibrates",
)
@contextmanager
def open_gptq(scenario: Scenario, settings: Settings) -> Iterator[LoadedModel]:
    """Quantized beforehand against calibration text (GPTQ), loaded by transformers"""
    yield load_packed(prepare_gptq(scenario, settings).path, settings, scenario.conditions.device)


@open_gptq.prepares
def prepare_gptq(scenario: Scenario, settings: Settings) -> Artifact:
    """The GPTQ checkpoint."""
    return gptqmodel.prepared(scenario, settings)


@open_gptq.forecasts
def forecast_gptq(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """Packed layers, the rest in 16 bits."""
    return forecast("gptq", architecture, precisions)


@open_gptq.asks
def gptq_recipe(scenario: Scenario) -> Mapping[str, str]:
    """Calibration and kernel."""
    return gptqmodel.recipe(scenario)


@open_gptq.saves
def save_gptq(scenario: Scenario, settings: Settings, out: Path) -> None:
    """Copy the checkpoint."""
    gptqmodel.saved(prepare_gptq(scenario, settings), out)
