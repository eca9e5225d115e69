"""GGUF files that are odd: other shapes, cut short, already quantized."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantbench.errors import ModelError, UnsupportedError
from quantbench.job import Checkpoint
from quantbench.methods import METHODS, Settings
from quantbench.methods._gguf_files import f16_file, file_precision, quantized_file, tensor_bytes
from quantbench.models._checkpoint import resolve
from quantbench.scenario import Scenario, Variant

pytestmark = pytest.mark.usefixtures("artifacts")


def settings(checkpoint: Checkpoint) -> Settings:
    return Settings(checkpoint=checkpoint, threads=2, context=64)


def scenario(model: str, precision: str) -> Scenario:
    return Scenario(model=model, variant=Variant(method="gguf", precision=precision), prompts="two")


def test_a_ready_file_is_used_as_it_is() -> None:
    made = quantized_file(resolve("canary"), "q8_0").path

    artifact = METHODS["gguf"].preparer(scenario(str(made), "q8_0"), settings(resolve(str(made))))

    assert artifact.path == made
    assert artifact.quantize_s is None
    assert file_precision(made) == "q8_0"


def test_a_quantized_file_is_not_quantized_again() -> None:
    made = quantized_file(resolve("canary"), "q8_0").path

    with pytest.raises(UnsupportedError, match=r"is q8_0; ask for gguf/q8_0, or give an F16 file"):
        METHODS["gguf"].preparer(scenario(str(made), "q4_k_m"), settings(resolve(str(made))))


def test_an_f16_file_can_be_quantized() -> None:
    source = resolve(str(f16_file(resolve("canary"))))

    artifact = METHODS["gguf"].preparer(scenario("x.gguf", "q4_k_m"), settings(source))

    assert file_precision(artifact.path) == "q4_k_m"
    assert tensor_bytes(artifact.path) == tensor_bytes(quantized_file(resolve("canary"), "q4_k_m").path)


def test_a_file_cut_short_is_one_sentence(tmp_path: Path) -> None:
    whole = quantized_file(resolve("canary"), "q8_0").path.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ModelError, match=r"cut\.gguf is cut short or damaged; make or download it again"):
        METHODS["gguf"].preparer(scenario(str(cut), "q8_0"), settings(resolve(str(cut))))


def test_rows_that_are_no_multiple_of_256_are_refused_for_k_quants_only(tmp_path: Path) -> None:
    """llama.cpp would silently use other types there."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=96, intermediate_size=160, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    for path in resolve("canary").path.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    odd = resolve(str(tmp_path))

    with pytest.raises(UnsupportedError, match=r"q4_k_m needs row sizes that are multiples of 256 and tensor .* has rows of"):
        quantized_file(odd, "q4_k_m")
    assert file_precision(quantized_file(odd, "q8_0").path) == "q8_0"
