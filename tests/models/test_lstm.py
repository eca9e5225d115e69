"""The built-in module: the tutorial's layers, the same weights and inputs every time, nobody's random state touched."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from quantbench.models import MODELS, is_module
from quantbench.models.builtin import lstm as source
from quantbench.models.checkpoint import resolve

if TYPE_CHECKING:
    from quantbench.models import ModuleRecipe


def _recipe() -> ModuleRecipe:
    recipe = MODELS["lstm"].module
    assert recipe
    return recipe


def test_the_layers_are_the_tutorials() -> None:
    from torch import nn

    module = _recipe().build()
    assert type(module).__name__ == "SimpleModel"
    assert isinstance(module.lstm, nn.LSTM)
    assert (module.lstm.input_size, module.lstm.hidden_size, module.lstm.num_layers) == (10, 20, 2)
    assert isinstance(module.fc, nn.Linear)
    assert (module.fc.in_features, module.fc.out_features) == (20, 5)
    assert not module.training


def test_weights_and_inputs_are_the_same_every_time_and_leave_the_random_state_alone() -> None:
    import torch

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, value = _recipe().build(), _recipe().example(7, 3)
    assert torch.rand(1) == expected
    torch.manual_seed(2)
    second, again = _recipe().build(), _recipe().example(7, 3)

    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert torch.equal(value, again)
    assert (value.shape, value.dtype) == ((16, 1, 10), torch.float32)
    assert first(value).shape == (16, 1, 5)


def test_inputs_differ_by_seed_and_index() -> None:
    values = [_recipe().example(seed, index) for seed in (0, 1) for index in (0, 1)]
    assert len({tuple(value.flatten().tolist()) for value in values}) == 4


def test_it_resolves_to_its_source() -> None:
    checkpoint = resolve("lstm")
    assert (checkpoint.kind, checkpoint.revision, checkpoint.quantized) == ("module", "built-in", "")
    assert str(checkpoint.path) == source.__file__
    assert checkpoint.content_hash == hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()


def test_only_modules_are_modules() -> None:
    assert is_module("lstm")
    assert not any(map(is_module, ("canary", "org/name", "./lstm")))
    assert MODELS["lstm"].instrument_check
