"""Pruning: zero the smallest weights of the decoder blocks, or remove whole FFN neurons; then quantize, for some precisions.

Zeros stay in dense tensors and are multiplied like other values, so only ``structured`` and ``2-4-sparse`` can be faster.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantbench.core.cache import OWN_FILES, artifact, made_by
from quantbench.core.errors import UnsupportedError
from quantbench.core.scenario import Precision, Spec, Variant
from quantbench.methods import METHODS, Artifact, LoadedModel, Settings, method
from quantbench.models.architecture import Architecture
from quantbench.models.checkpoint import watched
from quantbench.models.footprint import Weights, dense_bytes
from quantbench.runtimes.transformers.model import TransformersModel, load_pretrained
from quantbench.runtimes.transformers.pruning import (
    check_prunable,
    count_values,
    prunable_layers,
    remove_neurons,
    shrink,
    zero_smallest,
    zero_two_of_four,
)

UNSTRUCTURED_30 = Precision(name="unstructured-30", bits=32, title="30 % zeros", usual=False)
UNSTRUCTURED_50 = Precision(name="unstructured-50", bits=32, title="50 % zeros")
UNSTRUCTURED_70 = Precision(name="unstructured-70", bits=32, title="70 % zeros", usual=False)
TWO_OF_FOUR = Precision(name="2-4", bits=32, title="2:4", usual=False)
TWO_OF_FOUR_SPARSE = Precision(name="2-4-sparse", bits=16, title="2:4, sparse kernels", usual=False)
STRUCTURED_25 = Precision(name="structured-25", bits=32, title="25 % of FFN neurons removed")
STRUCTURED_50 = Precision(name="structured-50", bits=32, title="50 % of FFN neurons removed", usual=False)
STRUCTURED_25_INT8 = Precision(name="structured-25+int8", bits=8, title="25 % of FFN neurons removed, INT8", usual=False)
STRUCTURED_25_NF4 = Precision(name="structured-25+nf4", bits=4, title="25 % of FFN neurons removed, NF4", usual=False)
STRUCTURED_50_INT8 = Precision(name="structured-50+int8", bits=8, title="50 % of FFN neurons removed, INT8", usual=False)
UNSTRUCTURED_50_INT8 = Precision(name="unstructured-50+int8", bits=8, title="50 % zeros, INT8", usual=False)

PRECISIONS = (
    UNSTRUCTURED_30, UNSTRUCTURED_50, UNSTRUCTURED_70, UNSTRUCTURED_50_INT8, TWO_OF_FOUR, TWO_OF_FOUR_SPARSE,
    STRUCTURED_25, STRUCTURED_25_INT8, STRUCTURED_25_NF4, STRUCTURED_50, STRUCTURED_50_INT8,
)  # fmt: skip

_REMOVED = {"structured-25": 0.25, "structured-50": 0.5}
"""Shares of FFN neurons that are removed."""

_PRUNINGS: Mapping[str, Callable[[Any], None]] = {
    "unstructured-30": partial(zero_smallest, share=0.3),
    "unstructured-50": partial(zero_smallest, share=0.5),
    "unstructured-70": partial(zero_smallest, share=0.7),
    "2-4": zero_two_of_four,
    **{name: partial(remove_neurons, share=share) for name, share in _REMOVED.items()},
}
_NOTE = "prune.json"
_MAKERS = ("quantbench.methods.prune", "quantbench.runtimes.transformers.pruning", "quantbench.runtimes.transformers.model")
_SPARSE_CAPABILITY = (8, 0)


@method("prune", precisions=PRECISIONS, requires=["torch", "transformers"], extra="torch", costly="prunes and searches")
@contextmanager
def open_prune(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """Smallest weights zeroed (global L1, 2:4) or FFN neurons removed, some then quantized by bitsandbytes"""
    pruned = prepare_prune(spec, settings)
    there = _moved(settings, pruned.path)
    device = spec.conditions.device
    precision = spec.variant.precision
    counts = partial(count_values, elements=json.loads((pruned.path / _NOTE).read_text())["elements"])
    if quantized := _quantized(spec):
        with METHODS["bitsandbytes"].open(quantized, there) as model:
            yield model
    elif precision == TWO_OF_FOUR_SPARSE.name:
        loaded = load_pretrained(there, device, dtype="bfloat16")  # the sparse kernels do not support float32
        dense = TransformersModel(loaded, "", counts=counts).memory()
        found = {"elements": dense.elements, "nonzero": dense.nonzero, "sparse_bytes": dense.sparse_bytes}
        yield TransformersModel(loaded, _to_sparse(loaded), counts=lambda _, weight_bytes: found)  # noqa: ARG005
    else:
        kernel = "aten-float32" if precision.startswith("structured") else "aten-float32 (zeros stored dense)"
        yield TransformersModel(load_pretrained(there, device, dtype="float32"), kernel, counts=counts)


@open_prune.prepares
def prepare_prune(spec: Spec, settings: Settings) -> Artifact:
    """The pruned checkpoint in its own dtype, made on first use; ``PRUNING+QUANTIZATION`` shares that of its pruning."""
    precision = spec.variant.precision
    if precision == TWO_OF_FOUR_SPARSE.name:
        _check_sparse(spec.conditions.device)
    if _quantized(spec):
        METHODS["bitsandbytes"].check(settings.checkpoint)
    pruning = precision.removesuffix("-sparse").partition("+")[0]
    asked = {
        "content": settings.checkpoint.content_hash, "pruning": pruning, "made_by": made_by(*_MAKERS),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }  # fmt: skip

    def make(folder: Path) -> None:
        model = load_pretrained(settings, "cpu", dtype="auto")
        elements = sum(layer.weight.numel() for layer in prunable_layers(model))
        started = time.perf_counter()
        _PRUNINGS[pruning](model)
        note = {"quantize_s": time.perf_counter() - started, "elements": elements}
        model.save_pretrained(folder)
        (folder / _NOTE).write_text(json.dumps(note))

    folder = artifact("pruned", asked, watched(settings.checkpoint, make))
    return Artifact(
        path=folder,
        file_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        quantize_s=json.loads((folder / _NOTE).read_text())["quantize_s"],
        quantized=not _quantized(spec),
    )


@open_prune.forecasts
def forecast_prune(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """Zeros are stored like other values and removed neurons are not; the rest as bitsandbytes stores it, if quantized."""
    return {each: _forecast(architecture, each) for each in precisions}


def _forecast(architecture: Architecture, precision: str) -> Weights:
    pruning, _, quantized = precision.removesuffix("-sparse").partition("+")
    share = _REMOVED.get(pruning)
    try:
        check_prunable(architecture, in_fours=pruning == TWO_OF_FOUR.name)
        left = shrink(architecture, share) if share else architecture
    except UnsupportedError as error:
        return Weights(weight_bytes=None, dtype="fp32", note=str(error))
    if quantized:
        forecaster = METHODS["bitsandbytes"].forecaster
        assert forecaster
        return forecaster(left, [quantized])[quantized]
    if precision == TWO_OF_FOUR_SPARSE.name:
        unknown = "CUDA only, and how weights are stored depends on which sparse kernels torch chooses"
        return Weights(weight_bytes=None, dtype="bf16", note=unknown)
    note = "" if share else "zeros are stored like any value"
    return Weights(weight_bytes=dense_bytes(left, "fp32"), dtype="fp32", note=note)


@open_prune.saves
def save_prune(spec: Spec, settings: Settings, out: Path) -> None:
    """Write the pruned checkpoint, quantized if the precision says so."""
    pruned = prepare_prune(spec, settings).path
    if quantized := _quantized(spec):
        saver = METHODS["bitsandbytes"].saver
        assert saver
        saver(quantized, _moved(settings, pruned), out)
    else:
        shutil.copytree(pruned, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_NOTE, *OWN_FILES))


def _moved(settings: Settings, folder: Path) -> Settings:
    """The same settings with the pruned checkpoint, whose weights are in files even for a dummy."""
    content = f"{settings.checkpoint.content_hash} pruned {folder.name}"
    there = replace(settings.checkpoint, path=folder, content_hash=content, random_weights=False)
    return replace(settings, checkpoint=there)


def _quantized(spec: Spec) -> Spec | None:
    """The spec of bitsandbytes for a composition such as ``structured-25+int8``; None for pruning alone."""
    precision = spec.variant.precision.partition("+")[2]
    return replace(spec, variant=Variant(method="bitsandbytes", precision=precision)) if precision else None


def _check_sparse(device: str) -> None:
    import torch

    found = "the CPU" if device == "cpu" else "no CUDA device"
    if device != "cpu" and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability(device)
        if capability >= _SPARSE_CAPABILITY:
            return
        found = f"compute capability {capability[0]}.{capability[1]}"
    raise UnsupportedError(
        f"prune/2-4-sparse needs a CUDA device of compute capability 8.0 or newer for torch's semi-structured kernels, but "
        f"found {found}; use prune/2-4, which runs the same weights dense"
    )


def _to_sparse(model: Any) -> str:
    """Store the prunable weights of a 2:4 model sparse; returns the name of the class that torch chose for them."""
    import torch

    layers = prunable_layers(model)
    for layer in layers:
        try:
            sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # unsupported shapes, or a build without the kernels
            reason = str(error).splitlines()[0]
            raise UnsupportedError(
                f"torch cannot store these weights semi-structured ({reason}); use prune/2-4, which runs the same weights dense"
            ) from error
        layer.weight = torch.nn.Parameter(sparse, requires_grad=False)
    return type(layers[0].weight).__name__
