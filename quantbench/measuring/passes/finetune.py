"""Five LoRA steps with peft on a loaded module, and saving and loading the adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STEPS = 5
_LEARNING_RATE = 1e-3
_RANK = 8
_USUAL_TARGETS = ("q_proj", "v_proj")
_SEED = 0


def train_adapter(module: Any, ids: Sequence[int], folder: Path) -> tuple[str, dict[str, float]]:
    """Train LoRA adapters inside ``module`` and save them in ``folder``; returns what went wrong (or "") and the figures.

    It seeds torch globally, so run it in a separate process.
    """
    import torch
    from peft import get_peft_model

    torch.manual_seed(_SEED)
    adapted = get_peft_model(module, _adapter_config(module))
    adapted.train()
    weights = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=_LEARNING_RATE)
    batch = torch.tensor([list(ids)], device=module.device)
    losses: list[float] = []
    failure, norm = "", 0.0
    for step in range(STEPS + 1):
        torch.manual_seed(_SEED)  # the same dropout at every step, or chance would move the loss as well
        loss = adapted(input_ids=batch, labels=batch, use_cache=False).loss
        losses.append(float(loss.detach()))
        if not loss.requires_grad:
            return "the kernel passes no gradient", {"loss_first": losses[0]}
        if step == STEPS:
            break
        optimizer.zero_grad()
        loss.backward()
        if step < 2:  # B starts at zero, so A has a gradient from the second step on
            dead, norm = _first_layer(weights, "lora_A" if step else "lora_B")
            failure = failure or dead
        optimizer.step()
    adapted.eval()
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    figures = {"loss_first": losses[0], "loss_last": losses[-1], "gradient_norm": norm}
    if not failure and not losses[-1] < losses[0]:
        failure = f"the loss did not fall in {STEPS} steps ({losses[0]:.3f} to {losses[-1]:.3f})"
    return failure, figures


def load_adapter(module: Any, folder: Path) -> None:
    """Put the saved adapter into a freshly opened ``module``; FileNotFoundError where peft wrote no safetensors."""
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise FileNotFoundError("peft saved no adapter_model.safetensors")
    PeftModel.from_pretrained(module, str(folder)).eval()


def other_kernels(module: Any) -> str:
    """A hint where a gptqmodel kernel declares that it cannot be trained through; empty elsewhere."""
    kernels = {type(each).__name__ for each in module.modules() if getattr(each, "SUPPORTS_TRAINING", None) is False}
    names = "+".join(sorted(kernels))
    return f"; {names} cannot be trained through; gptqmodel's backend auto_trainable opens one that can" if kernels else ""


def _adapter_config(module: Any) -> Any:
    """LoRA on the query and value projections; else where peft puts it by default for the architecture, else on every layer."""
    from peft import LoraConfig
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    leaves = {name.rpartition(".")[2] for name, _ in module.named_modules()}
    targets: Any = list(_USUAL_TARGETS) if leaves.issuperset(_USUAL_TARGETS) else None
    if targets is None and module.config.model_type not in KNOWN:
        targets = "all-linear"
    return LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules=targets, task_type="CAUSAL_LM")


def _first_layer(weights: Mapping[str, Any], part: str) -> tuple[str, float]:
    """What is wrong with the gradients of ``part`` of the first layer's adapters, if anything, and their norm."""
    import torch

    layer = next(iter(weights)).partition(".lora_")[0].rpartition(".")[0]
    gradients = [each.grad for name, each in weights.items() if name.startswith(f"{layer}.") and part in name]
    if not gradients or any(each is None for each in gradients):
        return f"no gradient reaches {part} of the first layer", 0.0
    norm = float(torch.stack([each.float().norm() for each in gradients]).norm())
    if not 0 < norm < float("inf"):
        return f"the gradient of {part} of the first layer is {'zero' if norm == 0 else 'not finite'}", norm
    return "", norm
