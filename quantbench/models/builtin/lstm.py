"""The tutorial's module for dynamic quantization: two LSTM layers and a Linear, untrained, made anew at each load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantbench.models import BuiltinModel, ModuleRecipe

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS_SEED = 0
_SEQUENCE = 16
_BATCH = 1
_FEATURES = 10


def build() -> Any:
    """``SimpleModel`` as the tutorial has it, in eval mode; float32 weights, the same every time."""
    import torch
    from torch import nn

    class SimpleModel(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(input_size=_FEATURES, hidden_size=20, num_layers=2)
            self.fc = nn.Linear(20, 5)

        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.lstm(x)
            return self.fc(x)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_WEIGHTS_SEED)
        return SimpleModel().eval()


def example(seed: int, index: int) -> Any:
    """A seeded float32 input [sequence, batch, features] from a standard normal distribution."""
    import torch

    generator = torch.Generator().manual_seed(seed * 1000 + index)
    return torch.randn(_SEQUENCE, _BATCH, _FEATURES, generator=generator)


LSTM = BuiltinModel(
    name="lstm",
    about="LSTM(10, 20, 2 layers) + Linear(20, 5), 6025 untrained parameters; an instrument check",
    folder=lambda: Path(__file__).parent,
    module=ModuleRecipe(build=build, example=example),
    instrument_check=True,
)
