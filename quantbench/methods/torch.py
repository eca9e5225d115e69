"""Plain PyTorch through transformers: the reference, and half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantbench.methods import LoadedModel, Settings, method
from quantbench.methods._transformers import TransformersModel, load_pretrained
from quantbench.scenario import Precision, Scenario

FP32 = Precision(name="fp32", bits=32, title="FP32")
FP16 = Precision(name="fp16", bits=16, title="FP16")
BF16 = Precision(name="bf16", bits=16, title="BF16")
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@method("torch", precisions=[FP32, FP16, BF16], requires=["torch", "transformers"])
@contextmanager
def open_torch(scenario: Scenario, settings: Settings) -> Iterator[LoadedModel]:
    """The checkpoint cast to a dtype, run by PyTorch"""
    dtype = _DTYPES[scenario.variant.precision]
    model = load_pretrained(settings, scenario.conditions.device, dtype=dtype)
    yield TransformersModel(model, kernel=f"aten-{dtype}")


@open_torch.saves
def save_torch(scenario: Scenario, settings: Settings, out: Path) -> None:
    """Write the cast checkpoint."""
    load_pretrained(settings, "cpu", dtype=_DTYPES[scenario.variant.precision]).save_pretrained(out)
