"""What llama-server and vLLM say of their own times, as tokens and seconds; nothing where that cannot be true."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_MOST_TPS = 1e7
"""Tokens/s that no request can reach, not even while its prompt is read."""

_MOST_MS = 1e12
_LLAMA = ("prompt_n", "prompt_ms", "predicted_ms", "predicted_per_token_ms")
_VLLM = {
    "vllm:prompt_tokens_total": "prompt_tokens", "vllm:request_prefill_time_seconds_sum": "prefill_s",
    "vllm:generation_tokens_total": "tokens", "vllm:request_decode_time_seconds_sum": "decode_s",
    "vllm:request_decode_time_seconds_count": "requests",
}  # fmt: skip
"""Its counters by the names that they have here, since the server started."""


def possible(found: Mapping[str, float], elapsed_s: float) -> bool:
    """Whether timings fit into a request that took ``elapsed_s``, and their rates are not beyond any hardware."""
    rates = (found["prompt_tokens"] / found["prefill_s"], found["tokens"] / found["decode_s"])
    return found["prefill_s"] + found["decode_s"] <= 1.1 * elapsed_s + 0.1 and max(rates) <= _MOST_TPS


def of_llama_server(said: Mapping[str, Any], elapsed_s: float) -> dict[str, float]:
    """Its ``timings`` of one stream; empty where one is missing or impossible.

    Tokens are those that its own time per token counts: newer versions leave out the first, which the prompt pass yields.
    """
    figures = [said.get(name) for name in _LLAMA]
    if not all(isinstance(figure, int | float) and 0 < figure < _MOST_MS for figure in figures):
        return {}
    read, read_ms, written_ms, per_token_ms = map(float, figures)  # type: ignore[arg-type]  # numbers, as was just seen
    tokens = written_ms / per_token_ms
    found = {"prompt_tokens": read, "prefill_s": read_ms / 1e3, "tokens": tokens, "decode_s": written_ms / 1e3}
    return found if possible(found, elapsed_s) else {}


def vllm_totals(metrics: str) -> dict[str, float]:
    """Its counters out of what it shows to Prometheus, summed over engines; empty where one is missing."""
    totals: dict[str, float] = {}
    for line in metrics.splitlines():
        series, _, figure = line.rpartition(" ")
        if name := _VLLM.get(series.partition("{")[0]):
            with suppress(ValueError):
                totals[name] = totals.get(name, 0.0) + float(figure)
    return totals if len(totals) == len(_VLLM) and all(map(math.isfinite, totals.values())) else {}


def of_vllm(
    before: Mapping[str, float], after: Mapping[str, float], elapsed_s: float, tokens: int | None = None
) -> dict[str, float]:
    """Its timings of the one request between two looks at its counters; empty where there was another, or they are impossible.

    Another is seen by the number of requests, or by that of ``tokens``, where it is known what the one request gave. The first
    token counts as part of the prompt pass.
    """
    found = {name: after.get(name, 0.0) - figure for name, figure in before.items()}
    if found.pop("requests") != 1 or tokens not in (None, found["tokens"]):
        return {}
    found["tokens"] -= 1
    return found if min(found.values()) > 0 and possible(found, elapsed_s) else {}
