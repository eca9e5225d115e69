"""Plain PyTorch through transformers: the reference, and half precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from quantbench.core.scenario import Precision, Spec
from quantbench.methods import LoadedModel, LoadedModule, Settings, method
from quantbench.models.architecture import Architecture
from quantbench.models.footprint import Weights, dense_bytes
from quantbench.runtimes.transformers.devices import one_place
from quantbench.runtimes.transformers.model import TransformersModel, load_pretrained
from quantbench.runtimes.transformers.modules import TorchModule, build_module, refuse_to_save, state_dict_counts

FP32 = Precision(name="fp32", bits=32, title="FP32")
FP16 = Precision(name="fp16", bits=16, title="FP16", first_on_cpu=False)
BF16 = Precision(name="bf16", bits=16, title="BF16")
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@method("torch", precisions=[FP32, FP16, BF16], requires=["torch", "transformers"], kinds=("hf", "module"))
@contextmanager
def open_torch(spec: Spec, settings: Settings) -> Iterator[LoadedModel | LoadedModule]:
    """The checkpoint cast to a dtype, run by PyTorch"""
    dtype = _DTYPES[spec.variant.precision]
    device = spec.conditions.device
    if settings.checkpoint.kind == "module":
        yield _open_module(settings, device, dtype)
    else:
        model = load_pretrained(settings, device, dtype=dtype)
        yield TransformersModel(model, kernel=f"aten-{dtype}", counts=state_dict_counts())


@open_torch.forecasts
def forecast_torch(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """Every parameter in the requested dtype."""
    return {each: Weights(weight_bytes=dense_bytes(architecture, each), dtype=each) for each in precisions}


@open_torch.saves
def save_torch(spec: Spec, settings: Settings, out: Path) -> None:
    """Write the cast checkpoint."""
    refuse_to_save(settings.checkpoint)
    load_pretrained(settings, "cpu", dtype=_DTYPES[spec.variant.precision]).save_pretrained(out)


def _open_module(settings: Settings, device: str, dtype: str) -> LoadedModule:
    import torch

    kind, device = getattr(torch, dtype), one_place(device)
    if device != "cpu":  # by default cuDNN runs a float32 LSTM in TF32
        torch.backends.cudnn.allow_tf32 = False
    module = build_module(settings).to(device, kind)
    parameters = sum(each.numel() for each in module.parameters())
    return TorchModule(module, f"aten-{dtype}", settings, parameters=parameters, device=device, dtype=kind)
