"""A model of real size with random weights, by every kind of method: bytes beside the plan, speed beside the bare libraries."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fidelity import BILLION, PROMPT, drain, gguf_bench, opened, rates_of
from planned import LIMIT, run_rows
from ratios import Result, seconds_in_turn, speed_ratio

from quantbench.methods import METHODS

if TYPE_CHECKING:
    import pandas as pd

TORCH = ("torch/fp32", "torch/bf16", "bitsandbytes/int8", "bitsandbytes/nf4")
GGUF = ("gguf/q4_k_m", "gguf/q8_0")
PRECISIONS = [each.partition("/")[2] for each in (*TORCH, *GGUF)]
ASKED = ["--method", "torch,bitsandbytes,gguf", "--precision", ",".join(PRECISIONS), "--prompts", "tokens:128"]


def weights() -> Iterator[Result]:
    """One run of all variants: predicted over measured weight bytes, with throughput and use of the bandwidth beside them."""
    with tempfile.TemporaryDirectory() as folder:
        rows = run_rows(BILLION.model, [*ASKED, "--profile", "default"], Path(folder))
    for _, row in rows.iterrows():
        name = f"{row['method']}/{row['precision']}"
        if row["status"] != "ok":
            raise SystemExit(f"{name} is {row['status']}: {row['reason']}")
        planned, measured = int(row["predicted_weight_bytes"]), int(row["weight_bytes"])
        what = f"{name}: {_speeds(row)} (off by)"
        yield Result(what, f"{planned:,}", f"{measured:,}", abs(planned / measured - 1), LIMIT)


def _speeds(row: pd.Series[Any]) -> str:
    return f"pp {row['prefill_tps']:.1f} tg {row['decode_tps']:.2f} mbu {row['mbu']:.2f}"


def decode() -> Iterator[Result]:
    """Decoding beside plain ``model.generate`` of the same loaded model, and beside llama-bench on the same file."""
    import torch

    options = {"max_new_tokens": BILLION.decode, "min_new_tokens": BILLION.decode, "do_sample": False, "pad_token_id": 0}
    for variant in TORCH:
        method = METHODS[variant.partition("/")[0]]
        with method.open(*opened(BILLION, variant)) as loaded:
            model = loaded.model  # type: ignore[attr-defined]
            ids = torch.tensor([PROMPT])

            def ours(loaded: Any = loaded) -> None:
                drain(loaded.generate(PROMPT, BILLION.decode))

            def bare(model: Any = model, ids: Any = ids) -> None:
                model.generate(ids, attention_mask=torch.ones_like(ids), **options)

            seconds = seconds_in_turn(ours, bare, pairs=BILLION.pairs)
        rates = rates_of(seconds, BILLION.decode)
        yield speed_ratio(f"{BILLION.name} {variant} decode over model.generate", rates, BILLION.bench_limit)
    for variant in GGUF:
        yield from gguf_bench(BILLION, variant, processes=BILLION.pairs)
