"""What methods for torch modules without tokens share, and how many bytes ``torch.save`` writes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from quantbench.core.errors import UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.protocols import Settings
from quantbench.core.scratch import scratch_folder
from quantbench.core.trace import WeightMemory
from quantbench.models import MODELS, ModuleRecipe
from quantbench.runtimes.transformers.devices import settings_on
from quantbench.runtimes.transformers.model import bytes_by_kind, found_device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SAVED_AS = "model_fp32.pt"
"""The tutorial's name; ``torch.save`` writes a file's name beside each of its entries, so its length counts."""


class TorchModule:
    """A LoadedModule over a torch.nn.Module; ``dtype`` is that of its inputs."""

    def __init__(
        self, module: Any, kernel: str, settings: Settings, *, parameters: int, device: str, dtype: Any,
        state_bytes: Callable[[Any], int] = lambda _: 0, state_kind: str = "quantization_state",
    ) -> None:  # fmt: skip
        """``kernel`` names what runs; ``state_bytes`` counts in the module what is neither parameter nor buffer.

        ``state_kind`` says what that is.
        """
        self.module = module
        self.parameters = parameters
        self._kernel = kernel
        self._recipe = recipe_of(settings.checkpoint)
        self._device = device
        self._dtype = dtype
        self._state_bytes = state_bytes
        self._state_kind = state_kind

    @property
    def facts(self) -> Mapping[str, str]:
        """The kernel, and the device; the packed weights of torch-dynamic are not tensors, and are on the CPU."""
        device = found_device(self.module) or self._device
        return {"kernel": self._kernel, "device": device, **settings_on(device)}

    def example(self, seed: int, index: int) -> Any:
        """See LoadedModule."""
        return self._recipe.example(seed, index).to(self._device, self._dtype)

    def call(self, value: Any) -> NDArray[np.float32]:
        """See LoadedModule."""
        import torch

        with torch.inference_mode():
            output: NDArray[np.float32] = self.module(value).float().cpu().numpy()
        return output

    def memory(self) -> WeightMemory:
        """Bytes of distinct parameter and buffer storages, the quantization state, and the saved file."""
        by_kind = {**bytes_by_kind(self.module), self._state_kind: self._state_bytes(self.module)}
        return WeightMemory(by_kind=by_kind, state_dict_bytes=self._saved_bytes)

    @cached_property
    def _saved_bytes(self) -> int:
        return _file_bytes(self.module.state_dict())


def recipe_of(checkpoint: Checkpoint) -> ModuleRecipe:
    """How the module behind a checkpoint of kind ``module`` is made."""
    recipe = MODELS[checkpoint.name].module
    assert recipe is not None
    return recipe


def build_module(settings: Settings) -> Any:
    """The module in float32 on the CPU."""
    import torch

    torch.set_num_threads(settings.threads)
    return recipe_of(settings.checkpoint).build()


def refuse_to_save(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedError for a module, which has no checkpoint format."""
    if checkpoint.kind == "module":
        raise UnsupportedError(
            f"{checkpoint.name!r} is made from code and has no checkpoint to write; give a checkpoint folder"
        )


def state_dict_counts() -> Callable[[Any, int], Mapping[str, int | None]]:
    """What TransformersModel adds to WeightMemory: the bytes that ``torch.save`` would stream for the state dict.

    They are counted at the first call: what a model has to save does not change while it runs. Weights are not copied.
    """
    counted: dict[str, int | None] = {}

    def counts(model: Any, weight_bytes: int) -> Mapping[str, int | None]:  # noqa: ARG001 - has its caller's shape
        if not counted:
            counted["state_dict_bytes"] = _streamed_bytes(model.state_dict())
        return counted

    return counts


def _streamed_bytes(state: Mapping[str, Any]) -> int:
    import torch

    class ByteCounter(io.RawIOBase):
        count = 0

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.count += memoryview(data).nbytes
            return memoryview(data).nbytes

        def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:  # over the place of a storage's bytes
            self.count = offset + (self.count if whence == os.SEEK_CUR else 0)
            return self.count

    counter = ByteCounter()
    with _without_bytes(state):
        torch.save(state, counter)
    return counter.count


def _file_bytes(state: Mapping[str, Any]) -> int:
    import torch

    with scratch_folder() as folder, _without_bytes(state):
        path = folder / _SAVED_AS
        torch.save(state, path)
        return path.stat().st_size


@contextmanager
def _without_bytes(state: Mapping[str, Any]) -> Iterator[None]:
    """Inside this context ``torch.save`` leaves room for the bytes of these weights and does not read them.

    Else all weights of a GPU would be copied to the host (torch 2.13, serialization.py: _save). torch's own quantized tensors
    cannot be saved so, nor what is no tensor; they are on the CPU, and are written.
    """
    import torch
    from torch.serialization import get_crc32_options, set_crc32_options, skip_data

    plain = all(isinstance(each, torch.Tensor) and not each.is_quantized for each in state.values())
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        with skip_data() if plain else nullcontext():
            yield
    finally:
        set_crc32_options(before)
