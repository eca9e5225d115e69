"""Calibration token ids: text sampled from the model itself, seeded and cached, or windows of a file of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

from quantbench.core.cache import artifact, file_sha256, made_by
from quantbench.core.errors import ModelError, UnsupportedError, UsageError
from quantbench.core.job import Checkpoint
from quantbench.core.outside import is_file, read_text
from quantbench.core.protocols import Settings
from quantbench.core.scenario import Conditions, Spec
from quantbench.models.checkpoint import watched
from quantbench.runtimes import open_tokenizer
from quantbench.runtimes.transformers.model import load_pretrained

SEQUENCES = 128
LENGTH = 256
"""Tokens of one sequence; shorter only where the model's context is."""

MIN_SEQUENCES = 8
"""Fewer windows than this in a file are too few to calibrate on."""

_BATCH = 32
_IDS_FILE = "ids.json"
_MAKERS = ("quantbench.runtimes.transformers.calibration", "quantbench.runtimes.transformers.model")


def calibration_ids(spec: Spec, settings: Settings) -> list[list[int]]:
    """Equally long sequences of token ids to calibrate or train on.

    Without a file they are sampled from the model in its checkpoint's own dtype, at temperature 1 over the whole vocabulary,
    once per checkpoint and seed. Raises UsageError for a file that is missing, no text, or too short, UnsupportedError for a
    model that transformers cannot sample from.
    """
    conditions = spec.conditions
    if conditions.calibration:
        return _windows(Path(conditions.calibration), settings.checkpoint)
    if settings.checkpoint.kind != "hf" or settings.checkpoint.quantized:
        raise UnsupportedError(
            f"{settings.checkpoint.name} is not an unquantized checkpoint folder, so no calibration text can be sampled "
            "from it; give the folder it was made from"
        )
    asked = {
        "content": settings.checkpoint.content_hash, "seed": conditions.seed, **_shape(),
        "device": device_family(conditions.device), "made_by": made_by(*_MAKERS),
    }  # fmt: skip

    def make(folder: Path) -> None:
        (folder / _IDS_FILE).write_text(json.dumps(_sampled(settings, conditions.seed, conditions.device)))

    folder = artifact("calibration", asked, watched(settings.checkpoint, make))
    ids: list[list[int]] = json.loads((folder / _IDS_FILE).read_text())
    return ids


def calibration_identity(conditions: Conditions) -> str:
    """The calibration as part of a scenario's key: the file's hash, or how the text is sampled."""
    if not conditions.calibration:
        return f"sampled {SEQUENCES} x {LENGTH}"
    path = Path(conditions.calibration)
    try:
        return file_sha256(path) if is_file(path) else conditions.calibration
    except OSError:  # it cannot be read: the row will say so
        return conditions.calibration


def device_family(device: str) -> str:
    """The kind of device: text sampled on a GPU differs from that of a CPU, since their arithmetic differs."""
    return device.partition(":")[0]


def _shape() -> dict[str, int]:
    return {"sequences": SEQUENCES, "length": LENGTH}


def _sampled(settings: Settings, seed: int, device: str) -> list[list[int]]:
    import torch
    from transformers import GenerationConfig

    model = load_pretrained(settings, device, dtype="auto")
    config = model.config
    limit = min(LENGTH, getattr(config, "max_position_embeddings", None) or LENGTH)
    model.generation_config = GenerationConfig(  # not the checkpoint's own, which may bend the distribution
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=0
    )
    generator = torch.Generator().manual_seed(seed)
    start = config.bos_token_id
    sequences: list[list[int]] = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for _ in range(0, SEQUENCES, _BATCH):
            first = torch.randint(config.vocab_size, (_BATCH, 1), generator=generator)
            if start is not None:
                first = torch.full_like(first, start)
            out = model.generate(
                first.to(model.device), attention_mask=torch.ones_like(first, device=model.device), do_sample=True, top_k=0,
                top_p=1.0, temperature=1.0, min_new_tokens=limit - 1, max_new_tokens=limit - 1, pad_token_id=0,
            )  # fmt: skip
            sequences += out.tolist()
    return sequences


def _windows(path: Path, checkpoint: Checkpoint) -> list[list[int]]:
    """Up to SEQUENCES windows spread evenly over the text of a file, each with BOS where the model was trained with one."""
    try:
        text = read_text(path, "utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"calibration file {path} does not exist; give a text file with --calibration") from None
    except OSError as error:
        raise UsageError(f"calibration file {path} cannot be read ({error.strerror}); give a text file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"calibration file {path} is not UTF-8 text ({error}); save it as UTF-8") from error
    if not text.strip():
        raise UsageError(f"calibration file {path} is empty; give a text like those that the model will read")
    tokenizer = open_tokenizer(checkpoint)
    opening = tokenizer.encode("")
    ids = tokenizer.encode(text)[len(opening) :]
    body = min(LENGTH, tokenizer.context_limit or LENGTH) - len(opening)
    if body < 1:
        raise ModelError(f"{checkpoint.path} has a context of {tokenizer.context_limit} tokens, too short to calibrate on")
    found = len(ids) // body
    if found < MIN_SEQUENCES:
        raise UsageError(
            f"calibration file {path} has {len(ids)} tokens, but {MIN_SEQUENCES * body} are needed; "
            "give a longer text, or none to sample from the model"
        )
    count = min(found, SEQUENCES)
    starts = [index * found // count * body for index in range(count)]
    return [[*opening, *ids[start : start + body]] for start in starts]
