"""Quantization-aware training by self-distillation: the quantized model learns to reproduce the original's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from quantbench.core.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How long and how fast: ``steps`` of ``batch`` sequences of ``length`` tokens at a peak learning rate of ``rate``."""

    rate: float
    steps: int = 200
    batch: int = 4
    length: int = 128
    warmup: int = 20


def distill(model: Any, teacher: Any, sequences: Sequence[Sequence[int]], training: Training, seed: int) -> list[float]:
    """Train ``model`` (with fake quantization inserted) towards ``teacher``'s distribution; the loss of every step in nats.

    The loss is the mean KL(teacher || model) over all positions. Embeddings and output layer, which stay unquantized, are not
    trained. Both models are in evaluation mode: dropout would make runs differ.

    A GPU multiplies in bfloat16, a CPU in float32: where a CPU has no bfloat16, torch emulates each product, many times slower.
    Raises ModelError when the loss stops being finite.
    """
    import torch
    from torch.nn.functional import kl_div, log_softmax

    for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
        layer.requires_grad_(requires_grad=False)
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=training.rate, weight_decay=0.0, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=training.rate, total_steps=training.steps, pct_start=training.warmup / training.steps
    )
    ids = torch.tensor([list(each) for each in sequences], device=model.device)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for _ in range(training.steps):
        batch = _windows(ids, training, generator)
        with torch.no_grad():
            wanted = log_softmax(teacher(input_ids=batch, use_cache=False).logits.float(), dim=-1)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=model.device.type != "cpu"):
            logits = model(input_ids=batch, use_cache=False).logits
        found = log_softmax(logits.float(), dim=-1)
        loss = kl_div(found.flatten(0, 1), wanted.flatten(0, 1), log_target=True, reduction="batchmean")
        losses.append(float(loss.detach()))
        if not isfinite(losses[-1]):
            raise ModelError(f"the loss of quantization-aware training is {losses[-1]} at step {len(losses)}: it diverged")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return losses


def _windows(ids: Any, training: Training, generator: Any) -> Any:
    """A batch of windows [batch, length] at random places of random sequences."""
    import torch

    length = min(training.length, ids.shape[1])
    rows = torch.randint(len(ids), (training.batch,), generator=generator).tolist()
    starts = torch.randint(ids.shape[1] - length + 1, (training.batch,), generator=generator).tolist()
    return torch.stack([ids[row, start : start + length] for row, start in zip(rows, starts, strict=True)])
