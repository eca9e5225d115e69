"""The rounding floor: the reference scored once more, with every layer's output as if it had been rounded once more.

A control that repeats the same kernels differs by nothing at all. This is the least that rounding costs where the original runs
in its checkpoint's dtype, which rounds inside of layers as well. The noise is that of exllamav3's ``eval/qbench.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantbench.core.trace import NO_REFERENCE
from quantbench.measuring.passes.similarity import Scored, score_columns
from quantbench.methods import HasModule, LoadedModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NOISE: Mapping[str, float] = {"bf16": 2.0**-9, "fp16": 2.0**-12, "fp32": 2.0**-25}
"""Standard deviation of the noise, relative to each value: a quarter of the dtype's spacing at 1. Rounding to nearest makes an
error of 0.21 of it (root mean square, over values that are spread evenly on a logarithmic scale)."""

NO_LAYERS = "noise cannot be added to this model's layers: they are not those of a transformers model"


def measure_rounding(
    model: LoadedModel, scored: Scored, reference: Path | None, dtype: str, out: Path, *, threads: int = 1
) -> Path | str:
    """Score all of ``scored`` with the rounding noise of ``dtype``, the checkpoint's, and write the columns to ``out``.

    ``reference`` is the folder with the reference's log-probabilities. The noise is seeded. Returns ``out``, or why there is
    no such noise or nothing to compare with; the model is left as it was.
    """
    if reference is None:
        return NO_REFERENCE
    if dtype not in NOISE:
        return f"how a checkpoint in {dtype or 'an unknown dtype'} rounds is not known: only {', '.join(NOISE)} are"
    layers = _layers(model.model) if isinstance(model, HasModule) else ()
    if not layers:
        return NO_LAYERS
    score_columns(_Rounded(model, layers, NOISE[dtype]), scored, reference, out, threads=threads)
    return out


@dataclass(frozen=True, slots=True)
class _Rounded:
    """Scores as its model does, with noise of its own in each sequence."""

    model: LoadedModel
    layers: Sequence[Any]
    scale: float
    seeds: Iterator[int] = field(default_factory=count)

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        with _noisy(self.layers, self.scale, next(self.seeds)):
            yield from self.model.score(tokens, first)


def _layers(module: Any) -> Sequence[Any]:
    """The decoder's layers: of the lists in it the first that is as long as its configuration says; empty if there is none."""
    import torch

    if not hasattr(module, "get_decoder"):
        return ()
    depth = getattr(module.config.get_text_config(), "num_hidden_layers", 0)
    lists = (each for each in module.get_decoder().modules() if isinstance(each, torch.nn.ModuleList))
    return tuple(next((each for each in lists if len(each) == depth > 0), ()))


@contextmanager
def _noisy(layers: Sequence[Any], scale: float, seed: int) -> Iterator[None]:
    """Inside this context every layer's output carries noise."""
    generators: dict[Any, Any] = {}
    with ExitStack() as hooks:
        for layer in layers:
            handle = layer.register_forward_hook(partial(_rounded, scale, seed, generators))
            hooks.callback(handle.remove)
        yield


def _rounded(scale: float, seed: int, generators: dict[Any, Any], _layer: Any, _inputs: Any, output: Any) -> Any:
    """A layer's output with noise on its hidden states, which come first where it has several outputs."""
    import torch

    states = output[0] if isinstance(output, tuple) else output
    if states.device not in generators:
        generators[states.device] = torch.Generator(device=states.device).manual_seed(seed)
    noise = torch.empty(states.shape, dtype=torch.float32, device=states.device)
    noise.normal_(generator=generators[states.device])
    noisy = (states.float() * (1 + scale * noise)).to(states.dtype)
    return (noisy, *output[1:]) if isinstance(output, tuple) else noisy
