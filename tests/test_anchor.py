"""Which anchor a variant on a GPU gets: the model's own where it has room beside the variant, else the canary."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.boards import Boards
from quantbench.core.scenario import Conditions, Scenario, Variant
from quantbench.measuring import anchor
from quantbench.measuring.anchor import choose
from quantbench.methods import Settings
from quantbench.models.checkpoint import count_parameters, resolve
from quantbench.models.config import read_config

if TYPE_CHECKING:
    from collections.abc import Callable

CONTEXT = 1024
FLOAT32 = 4
BFLOAT16 = 2


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Boards with so many bytes free on each of two; torch has opened no GPU."""

    def lay(count: int) -> None:
        library = SimpleNamespace(NVMLError=RuntimeError, nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(free=count // 2))
        monkeypatch.setattr(anchor, "open_boards", lambda _: Boards(library, (0, 1)))

    return lay


def _chosen(batch: int = 1, device: str = "cuda") -> str:
    settings = Settings(checkpoint=resolve("canary"), threads=1, context=CONTEXT, batch=batch)
    variant = Variant(method="torch", precision="fp16")
    found = choose(Scenario(model="canary", variant=variant, prompts="two", conditions=Conditions(device=device)), settings)
    assert found is not None
    return found.name


def _needed(batch: int, size: int = BFLOAT16) -> int:
    """Weights with keys and values, by closed forms; ``size`` is that of an element: on a GPU the anchor is bf16."""
    checkpoint = resolve("canary")
    config = read_config(checkpoint.path)
    width = config["hidden_size"] // config["num_attention_heads"] * config["num_key_value_heads"]
    cache = 2 * config["num_hidden_layers"] * width * CONTEXT * size * batch
    return size * count_parameters(checkpoint) + cache


def test_the_models_own_form_needs_room_for_its_weights_and_its_cache(free: Callable[[int], None]) -> None:
    free(4 * _needed(1))
    assert _chosen() == "torch/bf16"
    assert _needed(64) > 4 * _needed(1)
    assert _chosen(batch=64) == "canary torch/bf16"
    free(_needed(1))  # all of it and no more
    assert _chosen() == "canary torch/bf16"


def test_where_nobody_tells_what_is_free_the_canary_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor, "open_boards", lambda _: "NVML cannot be opened")
    assert _chosen() == "canary torch/bf16"

    def refuse(_: Any) -> Any:
        raise RuntimeError("not supported")

    library = SimpleNamespace(NVMLError=RuntimeError, nvmlDeviceGetMemoryInfo=refuse)
    monkeypatch.setattr(anchor, "open_boards", lambda _: Boards(library, (0,)))
    assert _chosen() == "canary torch/bf16"


def test_the_host_is_not_asked_for_room_on_a_gpu_nor_the_gpu_for_the_hosts(
    free: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(100 * _needed(1))
    monkeypatch.setattr(anchor, "available_memory", lambda: 1)
    assert _chosen() == "torch/bf16"
    assert _chosen(device="cpu") == "canary torch/fp32"


def test_the_host_needs_room_for_the_cache_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor, "available_memory", lambda: 4 * _needed(1, FLOAT32))
    assert _chosen(device="cpu") == "torch/fp32"
    assert _chosen(batch=64, device="cpu") == "canary torch/fp32"


def test_a_torch_that_works_on_the_gpu_is_asked_after_it_gave_back_what_it_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    calls: list[str] = []

    def left(gpu: int) -> tuple[int, int]:
        calls.append(f"asked {gpu}")
        return 4 * _needed(1), 10**12

    monkeypatch.setattr(anchor, "open_boards", lambda _: "not to be asked")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("given back"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", left)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    assert "torch" in sys.modules
    assert _chosen() == "torch/bf16"
    assert calls == ["given back", "asked 0"]
