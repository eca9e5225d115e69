"""PyTorch's dynamic quantization: int8 weights, activations quantized at each call. CPU only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from quantbench.core.errors import UnsupportedError
from quantbench.core.scenario import Precision, Spec
from quantbench.methods import LoadedModel, LoadedModule, Settings, method
from quantbench.models.architecture import Architecture
from quantbench.models.footprint import Weights
from quantbench.runtimes.transformers.forecast import joined, layers_of, left_note, mixed_bytes
from quantbench.runtimes.transformers.model import TransformersModel, distinct_bytes, load_pretrained
from quantbench.runtimes.transformers.modules import TorchModule, build_module, state_dict_counts

INT8 = Precision(name="int8", bits=8, title="INT8, dynamic")

_DEPRECATIONS = (
    ("torch.ao.quantization is deprecated", DeprecationWarning),
    ("torch.quantize_per_tensor, torch.quantize_per_channel and other quantized tensor", UserWarning),
)
_PACKED = "packed_weights"
_QPARAMS_BYTES = 4 + 4
"""A float32 scale and an int32 zero point."""


@method("torch-dynamic", precisions=[INT8], requires=["torch", "transformers"], extra="torch", kinds=("hf", "module"))
@contextmanager
def open_torch_dynamic(spec: Spec, settings: Settings) -> Iterator[LoadedModel | LoadedModule]:
    """Linear and LSTM weights as INT8, activations quantized at each call, by torch.ao.quantization"""
    if spec.conditions.device != "cpu":
        raise UnsupportedError("torch-dynamic has kernels for the CPU only; measure it with --device cpu")
    if settings.checkpoint.kind == "module":
        import torch

        module = build_module(settings)
        parameters = sum(each.numel() for each in module.parameters())
        quantized = _quantize(module)
        yield TorchModule(
            quantized, _kernel(quantized), settings,
            parameters=parameters, device="cpu", dtype=torch.float32, state_bytes=_packed_bytes,
            state_kind=_PACKED,
        )  # fmt: skip
    else:
        model = _quantize(load_pretrained(settings, "cpu", dtype="float32"))
        yield TransformersModel(model, _kernel(model), _packed_bytes, state_dict_counts(), state_kind=_PACKED)


@open_torch_dynamic.forecasts
def forecast_torch_dynamic(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """Linear layers, including the output layer, in INT8 with one scale each; the rest in float32."""
    layers = layers_of(architecture, "linear", exact=True) + layers_of(architecture, "output")
    stored = {layer.name: layer.elements + _QPARAMS_BYTES for layer in layers}
    copy = ""
    if architecture.tied:
        copied = next(tensor for tensor in architecture.tensors if tensor.role == "embedding")
        stored["output"] = copied.elements + _QPARAMS_BYTES
        copy = "the output layer gets an INT8 copy of the embedding that it was tied to"
    engine = "CPU only; as x86's engine packs, where oneDNN and QNNPACK keep every INT8 weight twice"
    note = joined(engine, copy, left_note(architecture, "fp32", stored, output=True))
    weights = Weights(weight_bytes=mixed_bytes(architecture, "fp32", stored), dtype="fp32", note=note)
    return dict.fromkeys(precisions, weights)


def _quantize(model: Any) -> Any:
    """The model with its Linear and LSTM layers replaced one by one, so that both forms of the whole never coexist."""
    import torch
    from torch import nn

    with warnings.catch_warnings():
        for message, category in _DEPRECATIONS:
            warnings.filterwarnings("ignore", message=message, category=category)
        return torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.Linear}, dtype=torch.qint8, inplace=True)


def _kernel(model: Any) -> str:
    """The classes of quantized layers found in the model, and the engine that runs them."""
    import torch

    found = sorted({f"DynamicQuantized{type(layer).__name__}" for layer in _layers(model)})
    if not found:
        raise UnsupportedError("torch-dynamic found no Linear or LSTM layer to quantize in this model; use another method")
    return f"{'+'.join(found)}-{torch.backends.quantized.engine}"


def _layers(model: Any) -> Iterator[Any]:
    from torch.ao.nn.quantized.dynamic import LSTM, Linear

    return (layer for layer in model.modules() if isinstance(layer, LSTM | Linear))


def _tensors(layer: Any) -> tuple[list[Any], list[Any]]:
    """Unpacked weights and biases of a layer."""
    if hasattr(layer, "get_weight"):
        return list(layer.get_weight().values()), list(layer.get_bias().values())
    return [layer.weight()], [layer.bias()]


def _packed_bytes(model: Any) -> int:
    """Bytes of packed int8 weights with their scales and zero points, and of float32 biases, each storage once."""
    import torch

    total = 0
    biases: list[Any] = []
    for layer in _layers(model):
        weights, found = _tensors(layer)
        biases += [bias for bias in found if bias is not None]
        again, _ = _tensors(layer)
        for weight, second in zip(weights, again, strict=True):
            # oneDNN and QNNPACK hand out the plain tensor that they keep beside the packed one; FBGEMM makes a new one
            copies = 2 if weight.data_ptr() == second.data_ptr() else 1
            per_channel = weight.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
            channels = weight.size(0) if per_channel else 1
            total += copies * weight.numel() * weight.element_size() + channels * _QPARAMS_BYTES
    return total + sum(distinct_bytes(biases))
