"""What methods for torch modules without tokens share, and how many bytes ``torch.save`` writes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
        return WeightMemory(by_kind=by_kind, state_dict_bytes=_file_bytes(self.module.state_dict()))


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


def state_dict_counts(model: Any, weight_bytes: int) -> Mapping[str, int | None]:  # noqa: ARG001 - has its caller's shape
    """What TransformersModel adds to WeightMemory: the bytes that ``torch.save`` streams for the state dict; none are kept."""
    import torch

    class ByteCounter(io.RawIOBase):
        count = 0

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.count += memoryview(data).nbytes
            return memoryview(data).nbytes

    counter = ByteCounter()
    with _no_checksums():
        torch.save(model.state_dict(), counter)
    return {"state_dict_bytes": counter.count}


def _file_bytes(state: Mapping[str, Any]) -> int:
    import torch

    with scratch_folder() as folder:
        path = folder / _SAVED_AS
        torch.save(state, path)
        return path.stat().st_size


@contextmanager
def _no_checksums() -> Iterator[None]:
    """Without them the bytes need not be read to be counted."""
    from torch.serialization import get_crc32_options, set_crc32_options

    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)
