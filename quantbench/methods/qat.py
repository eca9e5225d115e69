"""QAT: the model is trained with simulated quantization to reproduce its own outputs, then quantized by torchao."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from quantbench.core.cache import artifact, made_by
from quantbench.core.scenario import Precision, Spec
from quantbench.methods import Artifact, LoadedModel, Settings, method
from quantbench.models.architecture import Architecture
from quantbench.models.checkpoint import watched
from quantbench.models.footprint import Weights
from quantbench.models.safetensors import weight_files
from quantbench.runtimes.transformers import torchao as ao
from quantbench.runtimes.transformers.calibration import calibration_identity, calibration_ids, device_family
from quantbench.runtimes.transformers.distill import Training, distill
from quantbench.runtimes.transformers.model import TransformersModel, load_pretrained

INT8 = Precision(name="int8", bits=8, title="INT8, activations too, trained", usual=False)
INT4 = Precision(name="int4", bits=4, title="INT4 in 8-bit storage, trained", usual=False)

SAME_AS = {"int8": "intx8-dyn", "int4": "intx4-wo"}
"""The precision of torchao with the same number format, quantized without training."""

TRAINING = {"int8": Training(rate=4e-6), "int4": Training(rate=4e-5)}
"""Learning rates tried on the canary: ten times more destroys what the model knew, ten times less changes almost nothing."""

_CURVE_POINTS = 12
_MAKERS = (__name__, *(f"quantbench.runtimes.transformers.{name}" for name in ("distill", "torchao", "calibration", "model")))
_CHECKPOINT = "checkpoint"
_CURVE = "training.json"


@method("qat", precisions=[INT8, INT4], requires=["torch", "transformers", "torchao"], extra="torchao", costly="trains")
@contextmanager
def open_qat(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """Trained by self-distillation with its quantization simulated, then quantized on load by torchao"""
    yield _load(spec, settings)


@open_qat.prepares
def prepare_qat(spec: Spec, settings: Settings) -> Artifact:
    """The trained checkpoint, still in bfloat16; ``quantize_s`` are the seconds of training. A dummy is not trained."""
    if settings.checkpoint.random_weights:
        return Artifact(path=settings.checkpoint.path, file_bytes=None, quantize_s=None, quantized=False)
    folder = _trained(spec, settings)
    file_bytes = sum(path.stat().st_size for path in weight_files(folder / _CHECKPOINT))
    made = _curve(folder)
    here = made.get("device", "cpu").partition(":")[0] == spec.conditions.device.partition(":")[0]
    return Artifact(
        path=folder / _CHECKPOINT, file_bytes=file_bytes, quantize_s=made["seconds"] if here else None, quantized=False
    )


@open_qat.asks
def qat_recipe(spec: Spec) -> Mapping[str, str]:
    """Calibration text and training."""
    training = TRAINING[spec.variant.precision]
    return {"calibration": calibration_identity(spec.conditions), "training": json.dumps(asdict(training))}


@open_qat.forecasts
def forecast_qat(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """The same as torchao's precision takes: training only changes values."""
    return {each: ao.forecast(architecture, SAME_AS[each]) for each in precisions}


@open_qat.saves
def save_qat(spec: Spec, settings: Settings, out: Path) -> None:
    """Write the quantized checkpoint."""
    _load(spec, settings).model.save_pretrained(out)


def _load(spec: Spec, settings: Settings) -> TransformersModel:
    precision, device = SAME_AS[spec.variant.precision], spec.conditions.device
    if settings.checkpoint.random_weights:  # training only changes values, and a dummy's are random anyway
        return ao.load_quantized(settings, device, precision)
    folder = _trained(spec, settings)
    trained = replace(settings, checkpoint=replace(settings.checkpoint, path=folder / _CHECKPOINT))
    losses = _curve(folder)["losses"]
    size = max(1, len(losses) // _CURVE_POINTS)
    curve = [round(fmean(losses[start : start + size]), 6) for start in range(0, len(losses), size)]
    return ao.load_quantized(trained, device, precision, {"qat_losses": json.dumps(curve)})


def _trained(spec: Spec, settings: Settings) -> Path:
    precision, conditions = spec.variant.precision, spec.conditions
    training = TRAINING[precision]
    asked = {
        "content": settings.checkpoint.content_hash, "precision": precision, "seed": conditions.seed,
        "calibration": calibration_identity(conditions), "training": asdict(training), "torchao": version("torchao"),
        "device": device_family(conditions.device), "made_by": made_by(*_MAKERS),
    }  # fmt: skip
    make = watched(settings.checkpoint, lambda folder: _train(folder, spec, settings, training))
    return artifact("qat", asked, make)


def _train(folder: Path, spec: Spec, settings: Settings, training: Training) -> None:
    with ao.quiet():
        from torchao.quantization import quantize_
        from torchao.quantization.qat import QATConfig

        same = SAME_AS[spec.variant.precision]
        ao.check_layers(settings, same)
        sequences = calibration_ids(spec, settings)
        device = spec.conditions.device
        teacher = load_pretrained(settings, device, dtype="float32")
        model = load_pretrained(settings, device, dtype="float32")
        started = time.perf_counter()
        quantize_(model.base_model, QATConfig(ao.base_config(same), step="prepare"))
        losses = distill(model, teacher, sequences, training, spec.conditions.seed)
        quantize_(model.base_model, QATConfig(step="convert"))
        seconds = time.perf_counter() - started
    model.bfloat16().save_pretrained(folder / _CHECKPOINT)
    (folder / _CURVE).write_text(json.dumps({"seconds": seconds, "losses": losses, "device": device}))


def _curve(folder: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((folder / _CURVE).read_text())
    return body
