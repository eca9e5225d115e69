"""Figures that only a server has: concurrent requests, log-probabilities of its likeliest tokens, its own timings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from statistics import median

from quantbench.core.record import Column, Missing, Value
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric

_SATURATED = 0.95
"""The share of the best throughput from which on more requests at once are taken to gain nothing."""

_SYSTEM = "NVIDIA NIM LLM benchmarking guide, metrics: TPS per system"
_TWO_LENGTHS = "quantbench; vllm bench and gpt-fast time whole answers of fixed lengths alike"
_SMAPS = "kernel: proc_pid_smaps_rollup"
_NATIVE_SOURCE = "llama-server: timings of a completion; vLLM: /metrics; Ollama: /api/generate"
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
    Column(
        "saturation_concurrency", "requests", kind="int", timed=True, title="Saturated at", show=".0f",
        doc="the fewest requests at once with which the server is as good as fully used",
        formula="least concurrency whose tokens/s reach 0.95 of the best; null if only the most does", source="quantbench",
    ),
)  # fmt: skip
_ALONE = (
    Column(
        "tpot_difference_s", "s", "lower", timed=True, title="TPOT by two lengths",
        doc="time per output token from answers of two lengths, in which HTTP, queue and prompt cancel out; median",
        formula="median((e2e(n) - e2e(m)) / (n - m)) over pairs of answers to a prompt, m half of n", source=_TWO_LENGTHS,
    ),
)  # fmt: skip
_MEMORY = (
    Column(
        "server_pss_bytes", "bytes", "lower", "int", title="Server memory",
        doc="most memory of all processes of a server that was started here, answering one prompt at a time",
        formula="highest sum of Pss over the processes; a page that several share counts in parts", source=_SMAPS,
    ),
    Column(
        "server_device_bytes", "bytes", "lower", "int", title="Server memory, GPU",
        doc="most device memory of these processes, as the driver lists it",
        formula="highest sum of usedGpuMemory over the processes and GPUs", source="NVML nvmlDeviceGetComputeRunningProcesses",
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
    Column(
        "topk_kld", "nats", "lower", title="KLD, at least",
        doc="divergence from the reference over the server's 5 likeliest tokens and one bucket for all others: by the "
        "data-processing inequality a lower bound of the KLD over the whole vocabulary",
        formula="mean(sum(p ln(p / q))) over t in S and the tail; q of the tail is at least 1e-6", source="quantbench",
    ),
    Column(
        "topk_tail", "ratio", doc="probability that the reference gives to that bucket, in which differences cannot be seen",
        formula="mean(1 - sum(p(t))) over t in S", source="quantbench",
    ),
)  # fmt: skip
_NATIVE = (
    Column(
        "native_decode_tps", "tokens/s", "higher", timed=True, title="Own timings, tokens/s",
        doc="decode speed as the server itself times it",
        formula="sum(tokens) / sum(their time), of the timed answers, or of one more a prompt from Ollama",
        source=_NATIVE_SOURCE,
    ),
    Column(
        "native_prefill_tps", "tokens/s", "higher", timed=True, doc="prefill speed as the server itself times it",
        formula="sum(prompt tokens) / sum(their time), of the same answers", source=_NATIVE_SOURCE,
    ),
)  # fmt: skip


_COLUMNS = (*_LOAD, *_ALONE, *_TOP, *_NATIVE, *_MEMORY)


@metric(*_COLUMNS)
def served(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Throughput under concurrency, likeliest tokens, the server's own timings and its memory"""
    if not trace.load_points and "load_points" not in trace.absent:
        none = Missing("measured only for servers")
        return {column.name: none for column in _COLUMNS}
    return {**_load(trace), "tpot_difference_s": _by_two_lengths(trace), **_top(trace), **_native(trace), **_memory(trace)}


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
        "saturation_concurrency": _saturation(trace),
    }


def _saturation(trace: Trace) -> Value:
    rates = {point.concurrency: point.tokens / point.seconds for point in trace.load_points}
    least = min(level for level, rate in rates.items() if rate >= _SATURATED * max(rates.values()))
    if least < max(rates):
        return least
    return Missing(f"not saturated at {least}, the most requests at once; raise --concurrency")


def _by_two_lengths(trace: Trace) -> Value:
    whole = [answer for each in trace.rounds for answer in each.variant]
    pairs = [(long, short) for long, short in zip(whole, trace.halves, strict=False) if long.tokens > short.tokens]
    if not pairs:
        return Missing(trace.absent.get("rounds", "no two answers to a prompt differ in length: the server ends them itself"))
    return median((long.e2e_s - short.e2e_s) / (long.tokens - short.tokens) for long, short in pairs)


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
        "topk_kld": top.kld,
        "topk_tail": top.tail,
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


def _memory(trace: Trace) -> dict[str, Value]:
    memory = trace.server_memory
    if memory is None:
        none = Missing(trace.absent.get("server_memory", "memory was not measured"))
        return {column.name: none for column in _MEMORY}
    return {
        f"server_{name}": Missing(memory.absent.get(name, "")) if figure is None else figure
        for name, figure in (("pss_bytes", memory.pss_bytes), ("device_bytes", memory.device_bytes))
    }
