"""Random weights of a dummy: each tensor is made on its device when transformers needs it, without a file or a second copy.

A method that quantizes on load quantizes each tensor before the next one is made.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING, Any

from quantbench.core.errors import ModelError
from quantbench.models.dummy import read_shapes
from quantbench.models.pool import SEED, SPREAD, cut

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quantbench.core.job import Checkpoint

POOL = 2**24 - 3
"""Values that large tensors are cut from, a prime."""

_PIECE = 2**20


def load_random(checkpoint: Checkpoint, **options: Any) -> Any:
    """A dummy's model through transformers' ``from_pretrained`` with ``options``; buffers are as its architecture has them.

    Raises ModelError if a parameter was left without weights.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
    model_class = getattr(transformers, config.architectures[0])
    values = NormalValues(getattr(config.get_text_config(), "initializer_range", None) or SPREAD)
    unmade = {name: Unmade(name, shape, values) for name, shape in read_shapes(checkpoint.path).items()}
    try:
        model, told = model_class.from_pretrained(None, config=config, state_dict=unmade, output_loading_info=True, **options)
    finally:
        values.free()
    _check_complete(model, unmade, told, checkpoint.name)
    if "quantization_config" not in options:  # else it would be saved under the names in memory, not those of its checkpoints
        vars(model).pop("_weight_conversions", None)
    return model


class NormalValues:
    """Seeded normal values of bfloat16's precision, drawn once on the CPU and copied once to each device."""

    def __init__(self, spread: float) -> None:
        """``spread`` is their standard deviation."""
        self._spread = spread
        self._pools: dict[str, Any] = {}
        self._lock = Lock()  # transformers asks from several threads

    def make(self, name: str, shape: Sequence[int], device: Any, dtype: Any) -> Any:
        """A new tensor: ones for a norm, zeros for a bias, else values of the pool, from where its name says, and around it."""
        import torch

        constant = _constant(name, shape)
        if constant is not None:
            return torch.full(shape, constant, device=device, dtype=dtype)
        pool = self._pool(device)
        made = torch.empty(math.prod(shape), device=device, dtype=dtype)
        at = 0
        for piece in cut(name, len(made), POOL):
            values = pool[piece]
            made[at : at + len(values)].copy_(values)
            at += len(values)
        return made.view(tuple(shape))

    def free(self) -> None:
        """Release the pools; tensors already made stay."""
        self._pools.clear()

    def _pool(self, device: Any) -> Any:
        with self._lock:
            if "cpu" not in self._pools:
                self._pools["cpu"] = draw_pool(self._spread)
            key = str(device)
            if key not in self._pools:
                self._pools[key] = self._pools["cpu"].to(device)
            return self._pools[key]


class Unmade:
    """Takes a tensor's place in a state dict. transformers reads it with ``[...]`` and then moves it: only then is it made."""

    def __init__(self, name: str, shape: Sequence[int], values: NormalValues) -> None:
        """Nothing is made yet."""
        self.made = False
        self._name = name
        self._shape = shape
        self._values = values

    def __getitem__(self, _: object) -> Unmade:
        """The whole tensor."""
        return self

    def to(self, device: Any, dtype: Any) -> Any:
        """The tensor itself."""
        self.made = True
        return self._values.make(self._name, self._shape, device, dtype)


def draw_pool(spread: float) -> Any:
    """The pool, in pieces, so that its float32 form is never there at once."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    pool = torch.empty(POOL, dtype=torch.bfloat16)
    for piece in pool.split(_PIECE):
        piece.copy_(torch.randn(len(piece), generator=generator).mul_(spread))
    return pool


def _constant(name: str, shape: Sequence[int]) -> float | None:
    """What all values of a norm or a bias are; None for other tensors."""
    module, _, last = name.rpartition(".")
    if last.endswith("bias"):
        return 0.0
    if last == "weight" and (len(shape) < 2 or "norm" in module.rpartition(".")[2]):
        return 1.0
    return None


def _check_complete(model: Any, unmade: Mapping[str, Unmade], told: Mapping[str, Any], name: str) -> None:
    """ModelError if transformers left a parameter out, whatever it reported: its memory would hold anything."""
    named = dict(model.named_parameters(remove_duplicate=False))
    left = {each for each, tensor in unmade.items() if not tensor.made} | {each for each in named if named[each].is_meta}
    left |= set(told["missing_keys"]) & set(named) | set(told["unexpected_keys"])
    if left:
        raise ModelError(
            f"transformers {version('transformers')} left {len(left)} of the {len(unmade)} tensors of {name} without random "
            f"weights ({min(left)} first); measure a real checkpoint of this architecture, or another dummy"
        )
