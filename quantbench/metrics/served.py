"""Figures that only a server has: concurrent requests, log-probabilities of its likeliest tokens, its own timings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from statistics import median

from quantbench.core.record import Column, Missing, Value
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric

_SYSTEM = "NVIDIA NIM LLM benchmarking guide, metrics: TPS per system"
_OLLAMA = "Ollama API, /api/generate"
_LOAD = (
    Column(
        "concurrency", "requests", kind="int", title="Requests at once", show=".0f",
        doc="the most requests that the server was sent at once",
        formula="as set with --concurrency", source="quantbench",
    ),
    Column(
        "concurrent_tps", "tokens/s", "higher", timed=True, title="Together, tokens/s",
        doc="tokens of all answers over the time for all of them, at that concurrency",
        formula="sum(n) / (last end - first start)", source=_SYSTEM,
    ),
    Column(
        "concurrent_ttft_s", "s", "lower", timed=True, title="TTFT together",
        doc="time to first token at that concurrency, queue included; median",
        formula="median(t_first - t_request)", source="NVIDIA NIM LLM benchmarking guide, metrics: TTFT",
    ),
    Column(
        "concurrency_tps", "tokens/s", kind="string", timed=True, doc="JSON: tokens/s by requests at once",
        formula="{concurrency: concurrent_tps}, for powers of two up to the most", source=_SYSTEM,
    ),
)  # fmt: skip
_TOP = (
    Column(
        "top_logprob_positions", "positions", kind="int", doc="positions at which likeliest tokens were compared",
        formula="count of positions that a text can reach, at most 5 a prompt", source="quantbench",
    ),
    Column(
        "top1_served", "ratio", "higher", title="Top-1", show=".1%",
        doc="share of them where server and reference put the same token first",
        formula="mean(first of the server == first of the reference)", source="llama.cpp tools/perplexity: Same top p",
    ),
    Column(
        "topk_overlap", "ratio", "higher", doc="share of the reference's 5 likeliest that the server names too, mean",
        formula="mean(|S and R| / |R|), S and R the sets of likeliest tokens, by text", source="quantbench",
    ),
    Column(
        "topk_logprob_error", "nats", "lower", title="Log-probability error, nats",
        doc="mean absolute difference of log-probabilities that both name",
        formula="mean(|ln q(t) - ln p(t)|) over t in S and R", source="quantbench",
    ),
)  # fmt: skip
_NATIVE = (
    Column(
        "native_decode_tps", "tokens/s", "higher", timed=True, title="Own timings, tokens/s",
        doc="decode speed as the server itself times it",
        formula="sum(eval_count) / sum(eval_duration)", source=_OLLAMA,
    ),
    Column(
        "native_prefill_tps", "tokens/s", "higher", timed=True, doc="prefill speed as the server itself times it",
        formula="sum(prompt_eval_count) / sum(prompt_eval_duration)", source=_OLLAMA,
    ),
)  # fmt: skip


@metric(*_LOAD, *_TOP, *_NATIVE)
def served(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Throughput under concurrency, likeliest tokens and the server's own timings"""
    if not trace.load_points and "load_points" not in trace.absent:
        none = Missing("measured only for servers")
        return {column.name: none for column in (*_LOAD, *_TOP, *_NATIVE)}
    return {**_load(trace), **_top(trace), **_native(trace)}


def _load(trace: Trace) -> dict[str, Value]:
    rates = {str(point.concurrency): point.tokens / point.seconds for point in trace.load_points}
    by_level: Value = json.dumps(rates) if rates else Missing(trace.absent.get("load_points", ""))
    if "load_points" in trace.absent:
        broke = Missing(trace.absent["load_points"])
        return {**{column.name: broke for column in _LOAD}, "concurrency_tps": by_level}
    most = max(trace.load_points, key=lambda point: point.concurrency)
    return {
        "concurrency": most.concurrency,
        "concurrent_tps": rates[str(most.concurrency)],
        "concurrent_ttft_s": median(most.ttft_s),
        "concurrency_tps": by_level,
    }


def _top(trace: Trace) -> dict[str, Value]:
    top = trace.top_logprobs
    if top is None:
        none = Missing(trace.absent.get("top_logprobs", "likeliest tokens were not asked for"))
        return {column.name: none for column in _TOP}
    return {
        "top_logprob_positions": top.positions,
        "top1_served": top.top1,
        "topk_overlap": top.overlap,
        "topk_logprob_error": Missing("server and reference name no token in common") if top.error is None else top.error,
    }


def _native(trace: Trace) -> dict[str, Value]:
    native = trace.native
    if not native:
        none = Missing(trace.absent.get("native", "the server gave no timings"))
        return {column.name: none for column in _NATIVE}
    return {
        "native_decode_tps": native["tokens"] / native["decode_s"],
        "native_prefill_tps": native["prompt_tokens"] / native["prefill_s"],
    }
