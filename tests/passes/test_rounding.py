"""The rounding floor on a small model of transformers whose layers can be listened to."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quantbench.core.trace import NO_REFERENCE
from quantbench.measuring.passes.rounding import NO_LAYERS, NOISE, measure_rounding
from quantbench.measuring.passes.similarity import LOGPROBS_FILE, log_softmax
from quantbench.runtimes.transformers.model import TransformersModel

if TYPE_CHECKING:
    from pathlib import Path

SCORED = [((1, 2, 3), tuple(range(4, 44))), ((5, 6), tuple(range(60, 20, -1)))]


def _model(dtype: str) -> TransformersModel:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    return TransformersModel(AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).eval(), "small")


def _scores(model: TransformersModel) -> np.ndarray[Any, Any]:
    scored = [model.score([*prompt, *rest[:-1]], first=len(prompt) - 1) for prompt, rest in SCORED]
    return np.concatenate([chunk.copy() for chunks in scored for chunk in chunks])


def _reference(model: TransformersModel, folder: Path) -> Path:
    np.save(folder / LOGPROBS_FILE, log_softmax(_scores(model)))
    return folder


def _read(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_every_layer_says_what_it_said_but_for_noise_as_large_as_rounding(dtype: str, tmp_path: Path) -> None:
    """What a layer gives is heard before the noise, and what the next one gets after it."""
    model = _model("float32")
    reference = _reference(model, tmp_path)
    given: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    got: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    for index, layer in enumerate(model.model.model.layers):
        layer.register_forward_hook(lambda _layer, _inputs, output, index=index: given[index].append(output.numpy().copy()))
        layer.register_forward_pre_hook(lambda _layer, inputs, index=index: got[index].append(inputs[0].numpy().copy()))
    assert measure_rounding(model, SCORED, reference, dtype, tmp_path / "rounded.npz") == tmp_path / "rounded.npz"
    for before, after in pairwise(range(3)):
        noise = np.concatenate([(b / a - 1).ravel() for a, b in zip(given[before], got[after], strict=True)])
        assert noise.std() == pytest.approx(NOISE[dtype], rel=0.05)
        assert abs(noise.mean()) < 5 * NOISE[dtype] / np.sqrt(len(noise))


def test_the_noise_is_as_large_as_torch_rounds() -> None:
    """Against rounding itself, of values over many magnitudes."""
    import torch

    values = torch.exp(torch.empty(100_000).uniform_(-9, 9, generator=torch.Generator().manual_seed(0)))
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        error = float((values.to(dtype).float() / values - 1).std())
        assert NOISE[name] / 1.3 < error < NOISE[name]
    assert [NOISE[name] for name in ("bf16", "fp16", "fp32")] == [
        torch.finfo(dtype).eps / 4 for dtype in (torch.bfloat16, torch.float16, torch.float32)
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_a_distance_that_repeats_and_leaves_the_model_as_it_was(dtype: str, tmp_path: Path) -> None:
    """Also for a model that computes in the dtype whose rounding is added."""
    model = _model(dtype)
    before = _scores(model)
    reference = _reference(model, tmp_path)
    found = [measure_rounding(model, SCORED, reference, "bf16", tmp_path / name) for name in ("a.npz", "b.npz")]
    first, second = (_read(path) for path in found if not isinstance(path, str))
    assert 0 < first["kld"].mean() < 0.05
    assert 0.8 < first["ear"].mean() < 1
    assert {name: each.tolist() for name, each in first.items()} == {name: each.tolist() for name, each in second.items()}
    np.testing.assert_array_equal(_scores(model), before)


def test_where_there_can_be_none_the_reason_is_told(tmp_path: Path) -> None:
    """No reference; a dtype that is no float's; a runtime without modules, and a module without layers."""
    from types import SimpleNamespace

    import torch

    model, out = _model("float32"), tmp_path / "rounded.npz"
    assert measure_rounding(model, SCORED, None, "bf16", out) == NO_REFERENCE
    for dtype, named in (("i32", "i32"), ("", "an unknown dtype")):
        why = measure_rounding(model, SCORED, tmp_path, dtype, out)
        assert why == f"how a checkpoint in {named} rounds is not known: only bf16, fp16, fp32 are"
    for strange in (SimpleNamespace(score=model.score), SimpleNamespace(model=torch.nn.Linear(2, 2))):
        assert measure_rounding(strange, SCORED, tmp_path, "bf16", out) == NO_LAYERS  # type: ignore[arg-type]
    assert not out.exists()
