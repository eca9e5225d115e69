"""The decode paths of the transformers runtime beside plain ``generate`` of the same loaded model: equal ids, and how fast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fidelity import CANARY, DUMMY, PROMPT, drain, opened, rates_of
from ratios import CannotRunError, seconds_in_turn, speed_ratio

from quantbench.methods import METHODS

if TYPE_CHECKING:
    from fidelity import Subject
    from ratios import Result

VARIANTS = ("torch/fp32", "torch/bf16")
LIMITS = {"eager": ">= 0.98", "static": ">= 1.0", "compiled": ">= 1.0"}


def decode_paths() -> Iterator[Result]:
    """Each path in turn with ``generate``; a path that answers otherwise than eager ends the check with the reason."""
    for subject in (CANARY, DUMMY):
        for variant in VARIANTS:
            with METHODS["torch"].open(*opened(subject, variant)) as loaded:
                for path, limit in LIMITS.items():
                    yield _beside_generate(subject, variant, loaded, path, limit)


def _beside_generate(subject: Subject, variant: str, loaded: Any, path: str, limit: str) -> Result:
    import torch

    length, ids = subject.decode, torch.tensor([PROMPT])
    options = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "pad_token_id": 0}
    found = loaded.decode_by(path, [PROMPT], length, len(PROMPT) + length)
    if found.path != path:
        raise CannotRunError(f"{subject.name} {variant}: {found.reason}")
    seconds = seconds_in_turn(
        lambda: drain(loaded.generate(PROMPT, length)),
        lambda: loaded.model.generate(ids, attention_mask=torch.ones_like(ids), **options),
        pairs=subject.pairs,
    )
    compiled = f", compiled in {found.compile_s:.0f} s" if found.compile_s else ""
    name = f"{subject.name} {variant} {path}{compiled}"
    return speed_ratio(name, rates_of(seconds, length), limit)
