"""Weight bytes of modules whose every byte is known, through the faces that methods use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from quantbench.methods import Settings
from quantbench.metrics.memory import EQUAL, footprint_note
from quantbench.models.checkpoint import resolve
from quantbench.runtimes.transformers.model import TransformersModel
from quantbench.runtimes.transformers.modules import TorchModule

if TYPE_CHECKING:
    from collections.abc import Callable

    from quantbench.core.trace import WeightMemory

WEIGHT, SMALL, COUNTS, CODES, SCALE = 4 * 6 * 10, 2 * 7, 8 * 5, 1 * 6 * 10, 4 * 6
"""Bytes: float32 [6, 10], float16 [7], int64 [5]; of a wrapped float32 [6, 10]: int8 codes and a float32 scale a row."""


def _wrapped() -> Any:
    """A tensor that says float32 [6, 10] and holds int8 codes with scales, as torchao's do."""
    import torch

    class Coded(torch.Tensor):
        codes: torch.Tensor
        scale: torch.Tensor

        def __tensor_flatten__(self) -> tuple[list[str], None]:
            return ["codes", "scale"], None

        @classmethod
        def __torch_dispatch__(cls, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert call is torch.ops.aten.detach.default
            return coded(args[0].codes, args[0].scale)

    def coded(codes: torch.Tensor, scale: torch.Tensor) -> Coded:
        made: Coded = torch.Tensor._make_wrapper_subclass(Coded, codes.shape, dtype=torch.float32)
        made.codes, made.scale = codes, scale
        return made

    return torch.nn.Parameter(coded(torch.zeros(6, 10, dtype=torch.int8), torch.ones(6, 1)), requires_grad=False)


def _plain(module: Any) -> None:
    import torch

    module.weight = torch.nn.Parameter(torch.zeros(6, 10))
    module.small = torch.nn.Parameter(torch.zeros(7, dtype=torch.float16))
    module.register_buffer("counts", torch.zeros(5, dtype=torch.int64))


def _tied(module: Any) -> None:
    _plain(module)
    module.again = module.weight


def _transposed(module: Any) -> None:
    """A second parameter over the first one's storage: another object, another shape."""
    import torch

    _plain(module)
    module.turned = torch.nn.Parameter(module.weight.data.t())


def _sliced(module: Any) -> None:
    """Parameters that are parts of one tensor, as fused projections are cut up."""
    import torch

    _plain(module)
    module.first, module.last = (torch.nn.Parameter(module.weight.data[rows]) for rows in (slice(2), slice(4, 6)))


def _part(module: Any) -> None:
    """The part alone: the whole of its storage stays in memory."""
    import torch

    _plain(module)
    module.weight = torch.nn.Parameter(module.weight.data[4:])


def _buffer_of_a_parameter(module: Any) -> None:
    _plain(module)
    module.register_buffer("view", module.weight.data[1])


def _expanded(module: Any) -> None:
    """A buffer that says a thousand rows and holds one."""
    import torch

    _plain(module)
    module.register_buffer("rows", torch.zeros(1, 3).expand(1000, 3))


def _subclass(module: Any) -> None:
    _plain(module)
    module.weight = _wrapped()


def _tied_subclass(module: Any) -> None:
    _subclass(module)
    module.again = module.weight


ELSEWHERE = 12
SHARED = "tensors that share storage are counted more than once"
DENSE = "tensor subclasses report the size of the dense tensors that they stand for"
PARAMETERS, BUFFERS, HELD = WEIGHT + SMALL, COUNTS, CODES + SCALE
KNOWN: dict[Callable[[Any], None], tuple[dict[str, int], int, str]] = {
    _plain: ({"parameters": PARAMETERS, "buffers": BUFFERS}, 0, EQUAL),
    _tied: ({"parameters": PARAMETERS, "buffers": BUFFERS}, 0, EQUAL),
    _transposed: ({"parameters": PARAMETERS, "buffers": BUFFERS}, WEIGHT, SHARED),
    _sliced: ({"parameters": PARAMETERS, "buffers": BUFFERS}, 4 * 4 * 10, SHARED),
    _part: ({"parameters": PARAMETERS, "buffers": BUFFERS}, -4 * 4 * 10, "storage is larger than the tensors in it"),
    _buffer_of_a_parameter: ({"parameters": PARAMETERS, "buffers": BUFFERS}, 4 * 10, SHARED),
    _expanded: ({"parameters": PARAMETERS, "buffers": BUFFERS + 4 * 3}, 999 * 4 * 3, SHARED),
    _subclass: ({"parameters": SMALL, "tensor_subclasses": HELD, "buffers": BUFFERS}, WEIGHT - HELD, DENSE),
    _tied_subclass: ({"parameters": SMALL, "tensor_subclasses": HELD, "buffers": BUFFERS}, WEIGHT - HELD, DENSE),
}
"""Bytes by kind, how many more transformers' own count says, and why."""


def _transformers_memory(fill: Callable[[Any], None], **options: Any) -> WeightMemory:
    import torch
    from transformers import LlamaConfig, PreTrainedModel

    class Known(PreTrainedModel):
        """Nothing but what it is filled with; its embedding lies elsewhere."""

        def get_input_embeddings(self) -> torch.nn.Module:
            return torch.nn.Embedding(1, 1)

    model = Known(LlamaConfig(num_hidden_layers=1, num_attention_heads=1, hidden_size=2))
    fill(model)
    return TransformersModel(model, "known", **options).memory()


@pytest.mark.parametrize("fill", KNOWN, ids=lambda fill: fill.__name__.strip("_"))
def test_every_byte_of_a_model_is_counted_once(fill: Callable[[Any], None]) -> None:
    by_kind, excess, note = KNOWN[fill]
    memory = _transformers_memory(fill)
    assert {kind: count for kind, count in memory.by_kind.items() if count} == by_kind
    assert memory.footprint_bytes == memory.weight_bytes + excess
    assert footprint_note(memory, memory.footprint_bytes) == note


@pytest.mark.parametrize("fill", KNOWN, ids=lambda fill: fill.__name__.strip("_"))
def test_every_byte_of_a_module_is_counted_once(fill: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("quantbench.runtimes.transformers.modules._file_bytes", lambda _: 0)  # torch saves no class of a test
    module = torch.nn.Module()
    fill(module)
    settings = Settings(checkpoint=resolve("lstm"), threads=1, context=0)
    loaded = TorchModule(module, "known", settings, parameters=0, device="cpu", dtype=torch.float32)
    assert {kind: count for kind, count in loaded.memory().by_kind.items() if count} == KNOWN[fill][0]


def test_what_is_neither_parameter_nor_buffer_has_the_methods_own_name_for_it() -> None:
    memory = _transformers_memory(_plain, state_bytes=lambda _: ELSEWHERE, state_kind="packed_weights")
    assert memory.by_kind["packed_weights"] == ELSEWHERE
    assert memory.weight_bytes == PARAMETERS + BUFFERS + ELSEWHERE == memory.footprint_bytes + ELSEWHERE
    assert footprint_note(memory, memory.footprint_bytes) == "neither parameters nor buffers: packed weights"
