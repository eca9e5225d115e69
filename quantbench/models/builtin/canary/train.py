"""Train the canary: ``python -m quantbench.models.builtin.canary.train OUT [--steps N]``.

A small Llama trained from scratch, at its full context with BOS in first position, on the interpreter's own documentation.
Deterministic for one machine, interpreter and set of library versions: everything random is seeded.
Writes the checkpoint (bf16 safetensors), the tokenizer for both runtimes, and ``training.json`` with the figures that the
model card reports.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

from quantbench.models.builtin.canary import corpus

SEED = 20261122
VOCABULARY = 2048
CONTEXT = 1024
BATCH = 8
STEPS = 1000
WARMUP_STEPS = 100
PEAK_LEARNING_RATE = 1e-3
FINAL_LEARNING_RATE = 5e-5
EVALUATE_EVERY = 100
SHORT_WINDOW = 256


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps)


def train(out: Path, steps: int) -> None:
    """Train for ``steps`` steps of ``BATCH`` x ``CONTEXT`` tokens and write the checkpoint to ``out``."""
    import torch

    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    out.mkdir(parents=True, exist_ok=True)
    training, held_out = corpus.split(corpus.documents())
    tokenizer = build_tokenizer(training, out)
    train_ids = encode(tokenizer, training)
    held_ids = encode(tokenizer, held_out)
    print(f"{len(train_ids)} training tokens, {len(held_ids)} held out", flush=True)

    model = new_model()
    compiled = torch.compile(model)  # 1.6 times as fast on two cores; needs a C++ compiler
    optimizer = torch.optim.AdamW(_decay_groups(model), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(SEED)
    curve: list[dict[str, float]] = []
    started = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        batch = sample_batch(train_ids, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = compiled(input_ids=batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % EVALUATE_EVERY == 0 or step + 1 == steps:
            point = {
                "step": step + 1,
                "train_loss": round(loss.item(), 4),
                "held_out_loss": round(held_out_loss(model, held_ids, CONTEXT), 4),
                "elapsed_s": round(time.perf_counter() - started, 1),
            }
            curve.append(point)
            print(json.dumps(point), flush=True)

    model = model.to(torch.bfloat16)
    model.save_pretrained(out)
    shipped = model.float()
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "tokens_seen": steps * BATCH * CONTEXT,
        "training_tokens": len(train_ids),
        "held_out_tokens": len(held_ids),
        "corpus_sha256": hashlib.sha256("\0".join(training + held_out).encode()).hexdigest(),
        "held_out_ppl_1024": round(math.exp(held_out_loss(shipped, held_ids, CONTEXT)), 3),
        "held_out_ppl_256": round(math.exp(held_out_loss(shipped, held_ids, SHORT_WINDOW)), 3),
        "elapsed_s": round(time.perf_counter() - started, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "curve": curve,
    }
    (out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / "held_out.txt").write_text("\n\n".join(held_out))
    print(json.dumps({key: value for key, value in facts.items() if key != "curve"}), flush=True)


def build_tokenizer(texts: list[str], out: Path) -> Any:
    """A sentencepiece BPE tokenizer with byte fallback, Llama's settings, saved for transformers and llama.cpp."""
    import sentencepiece
    from tokenizers import normalizers, processors
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(out / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=True,
        max_sentence_length=100_000,
        num_threads=1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    (out / "tokenizer.vocab").unlink()
    extracted = LlamaTokenizer.from_pretrained(str(out)).backend_tokenizer
    # llama.cpp puts the dummy space before every text; LlamaTokenizer's own pre-tokenizer leaves it out before a space.
    extracted.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    extracted.pre_tokenizer = None
    extracted.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=extracted,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(str(out))
    return tokenizer


def encode(tokenizer: Any, texts: list[str]) -> Any:
    """All documents as one int64 tensor [tokens], each document ended by EOS."""
    import torch

    ids: list[int] = []
    for text in texts:
        ids += tokenizer.encode(text, add_special_tokens=False)
        ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids)


def new_model() -> Any:
    """The untrained model, about 5.8 M parameters; every row is a multiple of 256, as K-quants need."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def sample_batch(ids: Any, generator: Any) -> Any:
    """[BATCH, CONTEXT] ids: BOS, then a window that starts anywhere."""
    import torch

    starts = torch.randint(len(ids) - CONTEXT, (BATCH,), generator=generator)
    windows = torch.stack([ids[start : start + CONTEXT - 1] for start in starts.tolist()])
    return torch.cat([torch.ones(BATCH, 1, dtype=torch.long), windows], dim=1)


def held_out_loss(model: Any, ids: Any, window: int) -> float:
    """Mean negative log-likelihood in nats per token over windows of ``window`` tokens, BOS first."""
    import torch

    usable = len(ids) // (window - 1) * (window - 1)
    rows = ids[:usable].view(-1, window - 1)
    rows = torch.cat([torch.ones(len(rows), 1, dtype=torch.long), rows], dim=1)
    total = 0.0
    model.eval()
    with torch.no_grad():
        for chunk in rows.split(max(1, 8192 // window)):
            total += model(input_ids=chunk, labels=chunk).loss.item() * len(chunk)
    model.train()
    return total / len(rows)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then cosine decay."""
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return FINAL_LEARNING_RATE + 0.5 * (PEAK_LEARNING_RATE - FINAL_LEARNING_RATE) * (1 + math.cos(math.pi * progress))


def _decay_groups(model: Any) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


if __name__ == "__main__":
    main()
