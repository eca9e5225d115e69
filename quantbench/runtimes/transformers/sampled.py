"""Continuations of several prompts sampled together, a forward pass per step: a CPU reads the weights once for all."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from quantbench.core.protocols import Sampling

TOGETHER = 16
"""Sequences of one pass: their caches take memory."""

_SAME_NATS = 1e-3
"""Log-probabilities of a padded row may differ by this much from those of the same row alone; float32 differs by 1e-5."""


def sample_together(
    model: Any, prompts: Sequence[Sequence[int]], limit: int, samplings: Sequence[Sampling], ends: Container[int]
) -> list[tuple[int, ...]] | None:
    """At most ``limit`` tokens after each prompt, up to and with the first of ``ends``, each drawn by its own seed.

    Shorter prompts are padded on the left. None if the transformers model ``model`` gives other logits for a padded row
    than for the same row alone, as one with a recurrent state does.
    """
    found: list[tuple[int, ...]] = []
    for start in range(0, len(prompts), TOGETHER):
        here = slice(start, start + TOGETHER)
        drawn = _batch(model, prompts[here], limit, samplings[here], ends)
        if drawn is None:
            return None
        found += drawn
    return found


def _batch(
    model: Any, prompts: Sequence[Sequence[int]], limit: int, samplings: Sequence[Sampling], ends: Container[int]
) -> list[tuple[int, ...]] | None:
    import torch
    from transformers import DynamicCache

    longest = max(map(len, prompts))
    device = model.device
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    generators = [torch.Generator().manual_seed(each.seed) for each in samplings]
    cache = DynamicCache(config=model.config)
    said: list[list[int]] = [[] for _ in prompts]
    going = [True] * len(prompts)
    with torch.inference_mode():
        for step in range(limit):
            places = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            logits = model(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1
            ).logits[:, -1]
            if not step and not same_alone(model, prompts, logits):
                return None
            drawn = [_draw(row, each.temperature, by) for row, each, by in zip(logits, samplings, generators, strict=True)]
            for number, token in enumerate(drawn):
                if going[number]:
                    said[number].append(token)
                    going[number] = token not in ends
            if not any(going):
                break
            ids = torch.tensor(drawn, device=device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return [tuple(each) for each in said]


def same_alone(model: Any, prompts: Sequence[Sequence[int]], logits: Any) -> bool:
    """Whether the row with the most padding has the logits that it has alone."""
    import torch

    number = min(range(len(prompts)), key=lambda each: len(prompts[each]))
    alone = model(input_ids=torch.tensor([list(prompts[number])], device=model.device), logits_to_keep=1).logits[0, -1]
    difference = torch.log_softmax(alone.double(), dim=-1) - torch.log_softmax(logits[number].double(), dim=-1)
    return bool(difference.abs().max() <= max(_SAME_NATS, 8 * torch.finfo(alone.dtype).eps * float(alone.abs().max())))


def _draw(logits: Any, temperature: float, generator: Any) -> int:
    import torch

    probabilities = torch.softmax(logits.float().cpu() / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
