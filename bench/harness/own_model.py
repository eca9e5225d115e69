"""The first run of a model of one's own: a checkpoint in SmolLM-135M's shape with fixed random weights.

python bench/harness/own_model.py FOLDER [LAYERS]     writes the checkpoint and measures nothing
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

LAYERS = 30
LIMIT_S = 720
_SEED = 20
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json")


def build(folder: Path, layers: int = LAYERS) -> None:
    """Write the checkpoint: bfloat16, tied embeddings; the canary's tokenizer, beyond whose 2048 ids rows have no text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from quantbench.models import MODELS

    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=2048, rms_norm_eps=1e-5, bos_token_id=1,
        eos_token_id=2, initializer_range=1 / 24, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(_SEED)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copyfile(MODELS["canary"].folder() / name, folder / name)


if __name__ == "__main__":
    build(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
