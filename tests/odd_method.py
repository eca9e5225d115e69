"""Methods that cannot do something: the canary with one thing broken each, for tests of the probes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from stub_method import StubModel

from quantbench.core.scenario import Precision, Spec
from quantbench.methods import LoadedModel, Settings, method
from quantbench.runtimes.transformers.model import TransformersModel, load_pretrained

_OPENED = count()


def _detach(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (arguments[0].detach(), *arguments[1:])


def _break(module: Any, how: str) -> None:
    import torch

    match how:
        case "deaf":  # no gradient comes out of the last layer
            module.lm_head.register_forward_pre_hook(_detach)
        case "first-layer-dead":  # the loss falls all the same
            module.model.layers[1].register_forward_pre_hook(_detach)
        case "gradients-not-finite":
            module.model.layers[0].self_attn.o_proj.register_full_backward_pre_hook(lambda _, grads: (grads[0] * torch.inf,))
        case "random":  # other weights each time it is opened
            torch.nn.init.normal_(module.model.layers[0].self_attn.o_proj.weight, std=1e-1 * (1 + next(_OPENED)))
        case "untrainable":
            module.model.layers[0].SUPPORTS_TRAINING = False
            module.model.layers[0].train = _refuse


def _refuse(mode: bool = True) -> None:
    if mode:
        raise NotImplementedError("this layer takes no training. More of it\nand more")


@method(
    "odd",
    precisions=[
        Precision(name=name, bits=4)
        for name in ("sound", "deaf", "first-layer-dead", "gradients-not-finite", "random", "untrainable", "lossy", "pickle")
    ],
    requires=["torch", "transformers"],
)
@contextmanager
def open_odd(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """The canary with one thing broken"""
    module = load_pretrained(settings, spec.conditions.device, dtype="float32")
    _break(module, spec.variant.precision)
    yield TransformersModel(module, kernel="odd")


@open_odd.saves
def save_odd(spec: Spec, settings: Settings, out: Path) -> None:
    """Save well, a little wrong, or as a pickle."""
    import torch

    module = load_pretrained(settings, "cpu", dtype="float32")
    if spec.variant.precision == "lossy":
        with torch.no_grad():
            module.lm_head.weight *= 1.001
    module.save_pretrained(out)
    if spec.variant.precision == "pickle":
        torch.save(module.state_dict(), out / "pytorch_model.bin")
        (out / "model.safetensors").unlink()


@method("fatal", precisions=[Precision(name="save", bits=8)], requires=[], anchor="stub/exact")
@contextmanager
def open_fatal(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """Nothing is loaded, and saving it ends the process"""
    yield StubModel()


@open_fatal.saves
def save_fatal(spec: Spec, settings: Settings, out: Path) -> None:
    """Crash as a library would."""
    os.kill(os.getpid(), signal.SIGSEGV)
