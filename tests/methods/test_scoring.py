"""How sequences are read while they are scored, by every runtime."""

from __future__ import annotations

import numpy as np
import pytest

from quantbench.core.scenario import Spec, Variant
from quantbench.measuring.passes.similarity import log_softmax
from quantbench.methods import METHODS, SCORE_POSITIONS, Settings, Sliced
from quantbench.models.checkpoint import resolve
from quantbench.runtimes.transformers.model import TransformersModel


def test_a_composite_model_is_scored_by_its_text_part() -> None:
    """Its configuration has no vocabulary of its own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert not hasattr(config, "vocab_size")
    tokens = list(range(3, 23))
    scored = np.concatenate([chunk.copy() for chunk in TransformersModel(model, "composite").score(tokens, first=4)])
    with torch.inference_mode():
        whole = model(input_ids=torch.tensor([tokens])).logits[0, 4:].numpy()
    np.testing.assert_allclose(log_softmax(scored), log_softmax(whole), atol=1e-5)


LENGTHS = {
    "torch": ([256, 256, 700 - 512], [128, 128, 128, 128, 128, 700 - 640]),
    "gguf": ([512 - 300, 256, 1000 - 768], [384 - 300, 128, 128, 128, 128, 1000 - 896]),
}
"""Positions of each pass over 1000 of which 700 are scored: torch's begin anew where scoring does, llama.cpp's do not."""


@pytest.mark.usefixtures("artifacts")
@pytest.mark.parametrize(("method", "precision"), [("torch", "fp32"), ("gguf", "q8_0")])
def test_passes_are_as_long_as_stated_and_no_longer(method: str, precision: str) -> None:
    """Whatever the vocabulary and the position at which scoring begins; passes of another length give nearly the same."""
    tokens = [1, *(300 + 7 * number % 1500 for number in range(999))]
    spec = Spec(model="canary", variant=Variant(method=method, precision=precision))
    settings = Settings(checkpoint=resolve("canary"), threads=2, context=1024)
    with METHODS[method].open(spec, settings) as model:
        assert isinstance(model, Sliced)
        whole = [chunk.copy() for chunk in model.score(tokens, first=300)]
        again = [chunk.copy() for chunk in model.score_sliced(tokens, 300, SCORE_POSITIONS // 2)]
    whole_lengths, again_lengths = LENGTHS[method]
    assert [len(chunk) for chunk in whole] == whole_lengths
    assert [len(chunk) for chunk in again] == again_lengths
    np.testing.assert_allclose(np.concatenate(whole), np.concatenate(again), atol=0.02)
