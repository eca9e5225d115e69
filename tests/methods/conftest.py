"""Checkpoints with packed weights, as other tools write them, made from the canary by plain arithmetic."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantbench.core.job import Checkpoint
from quantbench.core.scenario import Spec, Variant
from quantbench.methods import METHODS, Settings
from quantbench.models.checkpoint import resolve
from quantbench.runtimes.gptqmodel import quantize as gptqmodel

Array = NDArray[Any]
Layout = Callable[[Array, Array, Array], Mapping[str, Array]]
"""From codes [outputs, inputs], zero points and scales [outputs, groups] to the tensors of a layer."""

CODES_KEPT = 1
"""The lowest zero point: auto-gptq stores one less and has no sign for it."""

PACKED = [(method, each.name) for method in gptqmodel.CALIBRATION_SEQUENCES for each in METHODS[method].precisions]
"""Quantized by gptqmodel, which takes longer to import than to quantize the canary on a short text."""

SHORT_SEARCH = dict.fromkeys(gptqmodel.CALIBRATION_SEQUENCES, 1)

SHAPE: Mapping[str, Any] = {
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _counted_here(in_process: None) -> None:
    """Model types of no family are counted in this process."""


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """Save a model of a family, of random weights and with the canary's vocabulary: a third of the canary, the same always.

    What is made of it in the user's cache is therefore made once for all test modules.
    """
    made: dict[str, Checkpoint] = {}

    def save(family: str, **options: Any) -> Checkpoint:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        if (key := f"{family} {options}") in made:
            return made[key]
        config = AutoConfig.for_model(family, **{**SHAPE, **options})
        folder = tmp_path_factory.mktemp(family)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
        for path in resolve("canary").path.glob("tokenizer*"):
            shutil.copy(path, folder)
        made[key] = resolve(str(folder))
        return made[key]

    return save


def _rounded(weight: Array, bits: int, group_size: int) -> tuple[Array, Array, Array]:
    """Codes, zero points and scales of a matrix, rounded to the nearest step between each group's extremes."""
    groups = weight.reshape(len(weight), -1, group_size).astype(np.float32)
    top = 2**bits - 1
    low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
    scales = ((high - low) / top).astype(np.float16)
    zeros = np.clip(np.round(-low / scales), CODES_KEPT, top).astype(np.int64)
    codes = np.clip(np.round(groups / scales[:, :, None]) + zeros[:, :, None], 0, top).astype(np.int64)
    return codes.reshape(weight.shape), zeros, scales


@pytest.fixture
def write_packed(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Write the canary with packed layers, and beside it a plain checkpoint of exactly the values that they stand for."""

    def write(layout: Layout, bits: int, group_size: int, config: Mapping[str, object]) -> tuple[Path, Path]:
        import torch
        from safetensors.torch import load_file, save_file

        source = resolve("canary").path
        folders = tmp_path / "packed", tmp_path / "plain"
        for folder in folders:
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.py", "__pycache__"))
        tensors = {name: tensor.half() for name, tensor in load_file(source / "model.safetensors").items()}
        packed = dict(tensors)
        for name in [each for each in tensors if each.endswith("_proj.weight")]:
            codes, zeros, scales = _rounded(packed.pop(name).numpy(), bits, group_size)
            exact = (codes.reshape(*scales.shape, -1) - zeros[:, :, None]) * scales[:, :, None].astype(np.float32)
            tensors[name] = torch.from_numpy(exact.reshape(codes.shape))
            made = {name.removesuffix("weight") + key: value for key, value in layout(codes, zeros, scales).items()}
            packed |= {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in made.items()}
        for folder, contents in zip(folders, (packed, tensors), strict=True):
            save_file(contents, folder / "model.safetensors")  # without metadata, as auto-gptq did at first
        rewrite_config(folders[0], quantization_config=dict(config))
        return folders

    return write


def rewrite_config(folder: Path, **changes: object) -> None:
    """Set keys of config.json; None removes one."""
    body = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in body.items() if value is not None}))


@pytest.fixture
def change_config() -> Callable[..., None]:
    """``rewrite_config``, for tests that make folders of their own."""
    return rewrite_config


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPTQ and AWQ on 32 tokens: real calibration takes minutes, and what it finds is not judged here."""
    monkeypatch.setattr(gptqmodel, "CALIBRATION_SEQUENCES", SHORT_SEARCH)


def quantize_packed() -> None:
    """Quantize all that gptqmodel makes, in this process: for one of its own, as gptqmodel patches what it imports."""
    full = gptqmodel.calibration_ids

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gptqmodel, "CALIBRATION_SEQUENCES", SHORT_SEARCH)
        patch.setattr(gptqmodel, "calibration_ids", lambda *asked: [ids[:32] for ids in full(*asked)])
        patch.setattr(gptqmodel, "call", lambda _module, request, *_, **__: gptqmodel.quantize(request))
        for method, precision in PACKED:
            preparer = METHODS[method].preparer
            assert preparer
            spec = Spec(model="canary", variant=Variant(method=method, precision=precision))
            preparer(spec, Settings(checkpoint=resolve("canary"), threads=1, context=256))


@cache
def packed_are_made() -> None:
    """One process for all: the other tests of these methods, and every run, start one for each."""
    environment = {"OMP_NUM_THREADS": "1", "GPTQMODEL_CPU_WORKERS": "2", "THP_MEM_ALLOC_ENABLE": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment, "TMPDIR": folder}.items():
            patch.setenv(name, value)
        patch.chdir(folder)  # for its logs
        process = multiprocessing.get_context("spawn").Process(target=quantize_packed)
        process.start()
        process.join()
    assert process.exitcode == 0
