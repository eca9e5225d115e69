"""A small, complete trace with its reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from quantbench.core.trace import Answer, Generation, PeakMemory, Reference, Round, Trace, WeightMemory

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = ("one", "two", "three")
POSITIONS = 5
OUTPUT_TOKENS = 4


@pytest.fixture
def reference() -> Reference:
    """What a reference said to three prompts."""
    return Reference(
        parameters=1000,
        checkpoint_dtype="bf16",
        context_limit=64,
        prompt_tokens=tuple((1, 2 + index) for index in range(len(PROMPTS))),
        continuations=tuple((7,) * POSITIONS for _ in PROMPTS),
        answers=tuple(
            Answer(prompt=text, prompt_tokens=(1, 2 + index), tokens=(4, 5, 6, 7), text=f"answer to {text}")
            for index, text in enumerate(PROMPTS)
        ),
    )


@pytest.fixture
def columns_file(tmp_path: Path) -> Path:
    """Per-position columns of three prompts, unevenly different from the reference."""
    import numpy as np

    rng = np.random.default_rng(7)
    size = len(PROMPTS) * POSITIONS
    nll_reference = rng.gamma(2.0, 1.0, size)
    path = tmp_path / "columns-0.npz"
    np.savez(
        path,
        prompt=np.repeat(np.arange(len(PROMPTS), dtype=np.int32), POSITIONS),
        kld=rng.gamma(0.5, 0.02, size),
        nll=nll_reference + rng.normal(0.01, 0.1, size),
        nll_reference=nll_reference,
        top1=rng.random(size) < 0.8,
    )
    return path


@pytest.fixture
def trace(columns_file: Path, reference: Reference) -> Trace:
    """What a worker saw: six rounds of three prompts, each with one answer of the anchor."""
    return Trace(
        import_s=1.5,
        load_s=0.25,
        quantize_s=0.75,
        measured_s=3.0,
        parameters=1000,
        weights=WeightMemory(by_kind={"parameters": 500, "absmax": 62}, footprint_bytes=500),
        weight_bytes_running=562,
        artifact_bytes=600,
        peak=PeakMemory(
            peak_rss_bytes=9000, start_rss_bytes=4000, load_peak_rss_bytes=9500, rss_anon_bytes=5000, rss_file_bytes=3000
        ),
        anchor="torch/fp32",
        rounds=tuple(_round(index) for index in range(6)),
        answers=reference.answers,
        columns=columns_file,
        facts={"kernel": "aten", "kv_dtype": "float32", "checkpoint_dtype": "bf16", "threads": "2", "context": "64"},
    )


def _round(index: int) -> Round:
    pace = 1.0 + 0.01 * index
    return Round(
        index=index,
        variant=tuple(_answer(prompt, 0.010 * pace + 0.001 * prompt, 0.002 * pace) for prompt in range(len(PROMPTS))),
        anchor=(_answer(index % len(PROMPTS), 0.012 * pace, 0.003 * pace),),
    )


def _answer(prompt: int, prefill_s: float, gap_s: float) -> Generation:
    gaps = tuple(gap_s * (1 + 0.1 * position) for position in range(OUTPUT_TOKENS - 1))
    return Generation(prompt=prompt, prompt_tokens=2 + prompt, prefill_s=prefill_s, gaps_s=gaps, e2e_s=prefill_s + sum(gaps))
