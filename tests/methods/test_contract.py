"""Every method meets the LoadedModel contract on the canary, with bytes that closed forms and file headers confirm."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantbench.core.errors import UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.scenario import Conditions, Spec, Variant
from quantbench.core.trace import WeightMemory
from quantbench.measuring.passes.similarity import log_softmax
from quantbench.methods import METHODS, LoadedModel, Sampling, Settings, qat
from quantbench.models.checkpoint import resolve
from quantbench.runtimes.llama_cpp.files import UNQUANTIZED
from quantbench.runtimes.transformers.distill import Training

from .conftest import PACKED, packed_are_made

PROMPT = [1, 300, 400, 500, 600, 700]
NEED_CUDA = [("prune", "2-4-sparse"), ("torchao", "int4-wo"), ("torchao", "int4-hqq"), ("torchao", "fp8")]
"""Refused on the CPU, with the reason."""
MAKERS = [method for method in METHODS if not method.endpoint and not method.published]
OFFERED = [(method.name, each.name) for method in MAKERS for each in method.precisions]
GGUF_TRIED = ("f16", "q8_0", "q4_0", "q4_k_m", "q2_k", "iq4_nl", "iq3_xs", "q6_k-imat")
"""One of each kind: all that llama.cpp offers run through the same calls."""
VARIANTS = [each for each in OFFERED if each not in NEED_CUDA and (each[0] != "gguf" or each[1] in GGUF_TRIED)]
GGUF_MADE = [each.name for each in METHODS["gguf"].precisions if each.name != "mxfp4_moe"]  # which is for experts only
LAYERS, HIDDEN, KV, FFN, VOCABULARY = 6, 256, 128, 768, 2048
LINEAR = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV + 3 * HIDDEN * FFN)
ROWS = LAYERS * (2 * HIDDEN + 2 * KV + 2 * FFN + HIDDEN)
REST = 2 * VOCABULARY * HIDDEN + (2 * LAYERS + 1) * HIDDEN
MODULES = 7 * LAYERS
ROTARY = 2 * 16 * 4
"""inv_freq and its original: float32, half a head each."""

ORDER = 4 * LAYERS * (6 * HIDDEN + FFN)
"""GPTQ's g_idx: the group of each row, int32. Beside it a layer has a small table of shifts, one for each value of a word."""


def packed_bytes(bits: int, group_size: int) -> int:
    """Codes, and for each group a zero point of as many bits and a scale of two bytes; the rest in float16."""
    groups = LINEAR // group_size
    return (LINEAR + groups) * bits // 8 + 2 * groups + 2 * REST + ROTARY


pytestmark = pytest.mark.usefixtures("artifacts", "short_training", "short_search")


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """QAT of a few steps: what is learned is not judged here, and the real one takes minutes on a machine without it."""
    few = Training(rate=4e-6, steps=4, batch=1, length=16, warmup=2)
    monkeypatch.setattr(qat, "TRAINING", dict.fromkeys(("int8", "int4"), few))


@pytest.fixture(scope="module")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A calibration text that is just long enough, for what must be calibrated and is not judged by it."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(Path(textwrap.__file__).read_text()[:12000])
    return str(path)


def asked(method: str, precision: str, calibration: str = "", model: str = "canary") -> tuple[Spec, Settings]:
    variant = Variant(method=method, precision=precision)
    spec = Spec(model=model, variant=variant, conditions=Conditions(calibration=calibration))
    return spec, Settings(checkpoint=resolve(model), threads=1, context=256)


def opened(method: str, precision: str, calibration: str = "", model: str = "canary") -> AbstractContextManager[LoadedModel]:
    return METHODS[method].open(*asked(method, precision, calibration, model))


@dataclass(frozen=True)
class Seen:
    """What one loaded variant did: ``loaded`` before its first forward, ``weights`` after all."""

    loaded: WeightMemory
    weights: WeightMemory
    facts: Mapping[str, str]
    tokens: list[int]
    again: list[int]
    drawn: list[list[int]]
    chunks: np.ndarray[Any, np.dtype[np.float32]]


@cache
def seen(method: str, precision: str, calibration: str) -> Seen:
    """Load a variant once for all tests that look at it."""
    if (method, precision) in PACKED:
        packed_are_made()
    with opened(method, precision, calibration) as model:
        loaded = model.memory()
        tokens = list(model.generate(PROMPT, 8))
        again = list(model.generate(PROMPT, 4))
        chunks = np.concatenate([chunk.copy() for chunk in model.score([*PROMPT, *tokens], first=len(PROMPT) - 1)])
        drawn = [list(model.generate(PROMPT, 4, Sampling(seed=seed))) for seed in (1, 1, 2)]
        return Seen(loaded, model.memory(), dict(model.facts), tokens, again, drawn, chunks)


@pytest.mark.parametrize(("method", "precision"), VARIANTS, ids=[f"{a}-{b}" for a, b in VARIANTS])
def test_generation_and_scoring_agree(method: str, precision: str, short_text: str) -> None:
    """Greedy tokens are the argmax of the scores; lengths are exact; sampling follows its seed."""
    found = seen(method, precision, short_text if method == "gguf" else "")
    facts, weights, tokens, chunks, drawn = found.facts, found.weights, found.tokens, found.chunks, found.drawn

    assert facts["device"] == "cpu"
    assert 0.7 < (weights.step_bytes or 0) / weights.weight_bytes < 1  # all but the input embedding, one of two of 2048 x 256
    assert weights.cache_position_bytes == 2 * 6 * 4 * 32 * (4 if facts["kv_dtype"] == "float32" else 2)
    assert len(tokens) == 8
    assert tokens[:4] == found.again
    assert chunks.shape == (9, VOCABULARY)
    assert chunks.dtype == np.float32
    best = np.sort(chunks[:-1], axis=1)
    clear = best[:, -1] - best[:, -2] > 0.05  # a batch and single steps round differently, so ties may fall either way
    assert clear.any()
    assert chunks[:-1].argmax(axis=1)[clear].tolist() == np.array(tokens)[clear].tolist()
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(("method", "precision"), NEED_CUDA)
def test_what_needs_cuda_says_so_on_the_cpu(method: str, precision: str) -> None:
    with pytest.raises(UnsupportedError, match=r"CUDA.* found the CPU"), opened(method, precision):
        pass


@pytest.mark.parametrize(
    ("method", "precision", "expected"),
    [
        ("torch", "fp32", 4 * (LINEAR + REST) + ROTARY),
        ("torch", "fp16", 2 * (LINEAR + REST) + ROTARY),
        ("torch", "bf16", 2 * (LINEAR + REST) + ROTARY),
        ("bitsandbytes", "int8", LINEAR + 4 * ROWS + 2 * REST + ROTARY),
        ("bitsandbytes", "nf4", LINEAR // 2 + 4 * (LINEAR // 64) + 16 * 4 * MODULES + 2 * REST + ROTARY),
        ("bitsandbytes", "fp4", LINEAR // 2 + 4 * (LINEAR // 64) + 16 * 4 * MODULES + 2 * REST + ROTARY),
        ("gptq", "int8", packed_bytes(8, 128) + ORDER + 4 * 4 * MODULES),
        ("gptq", "int4-g128", packed_bytes(4, 128) + ORDER + 4 * 8 * MODULES),
        ("gptq", "int4-g64", packed_bytes(4, 64) + ORDER + 4 * 8 * MODULES),
        ("gptq", "int4-g32", packed_bytes(4, 32) + ORDER + 4 * 8 * MODULES),
        ("gptq", "int3", packed_bytes(3, 128) + ORDER + 4 * 3 * 12 * MODULES),
        ("gptq", "int2", packed_bytes(2, 128) + ORDER + 4 * 16 * MODULES),
        ("awq", "int4-g128", packed_bytes(4, 128)),
        ("awq", "int4-g64", packed_bytes(4, 64)),
        ("awq", "int4-g32", packed_bytes(4, 32)),
    ],
)
def test_weight_bytes_are_the_closed_form(method: str, precision: str, expected: int) -> None:
    assert seen(method, precision, "").loaded.weight_bytes == expected


def test_footprint_leaves_out_the_quantization_state() -> None:
    """What transformers reports for NF4 is short by exactly the state."""
    memory = seen("bitsandbytes", "nf4", "").loaded

    assert memory.footprint_bytes == memory.weight_bytes - memory.by_kind["quantization_state"]


def test_double_quantization_saves_memory() -> None:
    assert seen("bitsandbytes", "nf4-dq", "").loaded.weight_bytes < seen("bitsandbytes", "nf4", "").loaded.weight_bytes


@pytest.mark.parametrize("precision", GGUF_MADE)
def test_gguf_bytes_are_those_of_the_files_tensors(
    precision: str, short_text: str, small_checkpoint: Callable[..., Checkpoint]
) -> None:
    """llama.cpp's own count equals the block sizes of the types that the header names.

    Of the canary as it is converted; what is quantized is so of a smaller model, as some types take seconds.
    """
    from gguf import GGML_QUANT_SIZES, GGUFReader

    model = "canary" if precision in UNQUANTIZED else str(small_checkpoint("qwen2", tie_word_embeddings=True).path)
    prepare = METHODS["gguf"].preparer
    assert prepare
    made = prepare(*asked("gguf", precision, short_text, model))
    expected = 0
    for tensor in GGUFReader(made.path).tensors:
        block, size = GGML_QUANT_SIZES[tensor.tensor_type]
        expected += math.prod(int(length) for length in tensor.shape) // block * size
    with opened("gguf", precision, short_text, model) as loaded:
        assert loaded.memory().weight_bytes == expected
    assert made.file_bytes == made.path.stat().st_size > expected


def test_torch_decodes_what_generate_decodes() -> None:
    import torch

    with opened("torch", "fp32") as loaded:
        ours = list(loaded.generate(PROMPT, 24))
        ids = torch.tensor([PROMPT])
        theirs = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0
        )

    assert ours == theirs[0, len(PROMPT) :].tolist()


def test_f16_gguf_and_fp32_torch_are_the_same_model() -> None:
    """Across runtimes on equal ids: the conversion, the scoring and the tokens are right."""
    tokens = [1, *range(300, 364)]
    with opened("torch", "fp32") as reference, opened("gguf", "f16") as variant:
        p = log_softmax(np.concatenate([chunk.copy() for chunk in reference.score(tokens)])).astype(np.float64)
        q = log_softmax(np.concatenate([chunk.copy() for chunk in variant.score(tokens)])).astype(np.float64)

    assert (np.exp(p) * (p - q)).sum(axis=1).mean() < 1e-5


def test_scoring_from_a_later_position_gives_the_same_logits() -> None:
    for method, precision in (("torch", "fp32"), ("gguf", "f16")):
        with opened(method, precision) as model:
            whole = np.concatenate([chunk.copy() for chunk in model.score(PROMPT)])
            tail = np.concatenate([chunk.copy() for chunk in model.score(PROMPT, first=3)])

        np.testing.assert_allclose(whole[3:], tail, atol=2e-3)
