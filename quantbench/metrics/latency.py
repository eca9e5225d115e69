"""Latency and throughput of fixed-length answers, rates of whole batches, and ratios to the anchor in the same process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from quantbench.core.record import Column, Gate, Missing, Value
from quantbench.core.statistics import P99_MIN_SAMPLES, mad, median_interval, percentile
from quantbench.core.trace import Generation, Reference, Round, Trace
from quantbench.metrics import metric
from quantbench.metrics._spread import (
    PERCENTILE_SOURCE,
    SPREAD_SOURCE,
    interval_columns,
    percentile_formula,
    spread_formula,
)

_TOO_FEW = Missing(f"a p99 needs {P99_MIN_SAMPLES} answers")
_ONE_EVENT = Missing("every answer came in one piece, so there is no time between tokens")
_UNCOUNTED = Missing("the prompts' tokens were not counted: the server does not, and the model has no tokenizer here")
_NIM = "NVIDIA NIM LLM benchmarking guide, metrics"
_PER_ANSWER: Mapping[str, tuple[str, str, str, Callable[[Generation], float]]] = {
    "prefill_s": (
        "prompt pass to the first token", "median(t_first - t_request)", "llama-bench, prompt processing",
        lambda answer: answer.prefill_s,
    ),
    "ttft_s": (
        "time to first token; no queue here, so it equals prefill_s", "median(t_first - t_request)",
        f"{_NIM}: TTFT; MLCommons inference rules: TTFT", lambda answer: answer.prefill_s,
    ),
    "tpot_s": (
        "time per output token after the first",
        "median(batch x (e2e - ttft) / (n - n_first)); n_first = 1 of each sequence, or what a server sends at once",
        "NVIDIA AIPerf: inter token latency; MLCommons inference rules: TPOT",
        lambda each: each.batch * (each.e2e_s - each.prefill_s) / (each.tokens - each.first_tokens),
    ),
    "e2e_s": (
        "request to last token", "median(t_last - t_request)", f"{_NIM}: end-to-end request latency",
        lambda answer: answer.e2e_s,
    ),
}  # fmt: skip
"""Figures of each answer: meaning, formula over all answers, source, and how to compute it."""

_RATES = (
    (
        "prefill_tps", "prompt tokens by prefill time of a round; median over rounds",
        "median over rounds of sum(prompt tokens) / sum(prefill_s)", "llama-bench, pp",
    ),
    (
        "decode_tps", "tokens after the first by the time between tokens of a round; median over rounds",
        "median over rounds of sum(n - n_first) / sum(gaps between tokens)", "llama-bench, tg",
    ),
    (
        "tps", "all output tokens by the end-to-end time of a round; median over rounds",
        "median over rounds of sum(n) / sum(e2e_s)", f"{_NIM}: TPS, per user where the batch is 1",
    ),
)  # fmt: skip


_SHOWN: Mapping[str, Mapping[str, Any]] = {
    "ttft_s": {"title": "TTFT", "shown": "overview", "place": 21},
    "decode_tps": {"title": "Decode, tokens/s", "spread": "interval", "shown": "overview", "place": 20},
    "decode_ratio": {"title": "Decode, x anchor", "show": "times", "shown": "report", "place": 22},
    "prefill_tps": {"gate": Gate(name="prefill", ratio="prefill_ratio")},
}
"""How some of these columns are shown, and which ones comparisons judge."""


def _columns() -> tuple[Column, ...]:
    columns = [
        Column(
            "rounds", "rounds", kind="int", doc="timed rounds",
            formula="until the 95 % interval of the median round is within +-2 % or the time is up", source="quantbench",
        ),
        Column(
            "round_prompts", "prompts", doc="answers of a round, mean; prompts take turns where all would take too long",
            formula="answers / rounds", source="quantbench",
        ),
    ]  # fmt: skip
    for name, (doc, formula, source, _) in _PER_ANSWER.items():
        stem = name.removesuffix("_s")
        columns += [
            Column(name, "s", "lower", doc=f"{doc}; median over answers", formula=formula, source=source),
            Column(
                f"{stem}_mad_s", "s", doc=f"median absolute deviation of {name} x 1.4826", formula=spread_formula(name),
                source=SPREAD_SOURCE,
            ),
            Column(
                f"{stem}_p90_s", "s", "lower", doc=f"90th percentile of {name}", formula=percentile_formula(name, 0.9),
                source=PERCENTILE_SOURCE,
            ),
            Column(
                f"{stem}_p99_s", "s", "lower", doc=f"99th percentile of {name}, from {P99_MIN_SAMPLES} answers",
                formula=percentile_formula(name, 0.99), source=PERCENTILE_SOURCE,
            ),
        ]  # fmt: skip
    for name, doc, formula, source in _RATES:
        columns += [
            Column(name, "tokens/s", "higher", doc=doc, formula=formula, source=source),
            *interval_columns(name, "tokens/s", "rounds"),
        ]
    made = (*columns, *_ANCHORED)
    counts = ("rounds", "round_prompts")
    return tuple(replace(each, timed=each.name not in counts, **_SHOWN.get(each.name, {})) for each in made)


def _anchored() -> tuple[Column, ...]:
    columns = []
    for name in ("prefill", "decode"):
        columns += [
            Column(
                f"anchor_{name}_tps", "tokens/s", doc=f"the anchor's {name} throughput in the same process",
                formula=f"{name}_tps of the anchor's answers", source="quantbench",
            ),
            Column(
                f"{name}_ratio", "ratio", "higher", doc=f"{name} throughput over the anchor's; median of paired rounds",
                formula=f"median over rounds of {name}_tps / anchor_{name}_tps, on the prompts that both answered",
                source="quantbench",
            ),
            *interval_columns(f"{name}_ratio", "ratio", "paired rounds"),
        ]  # fmt: skip
    return tuple(columns)


_ANCHORED = _anchored()
_COLUMNS = _columns()


@metric(*_COLUMNS)
def latency(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """TTFT, TPOT, end-to-end latency and tokens per second, raw and relative to the anchor"""
    if not trace.rounds:
        none = Missing(trace.absent.get("rounds", "no answers were timed"))
        return {column.name: none for column in _COLUMNS}
    answers = [answer for each in trace.rounds for answer in each.variant]
    values: dict[str, Value] = {"rounds": len(trace.rounds), "round_prompts": len(answers) / len(trace.rounds)}
    decoded = [answer for answer in answers if _spread(answer)]
    for name, (*_, take) in _PER_ANSWER.items():
        stem = name.removesuffix("_s")
        numbers = [take(answer) for answer in (decoded if stem == "tpot" else answers)]
        if not numbers:
            values |= dict.fromkeys((name, f"{stem}_mad_s", f"{stem}_p90_s", f"{stem}_p99_s"), _ONE_EVENT)
            continue
        values |= {name: median(numbers), f"{stem}_mad_s": mad(numbers), f"{stem}_p90_s": percentile(numbers, 0.9)}
        values[f"{stem}_p99_s"] = percentile(numbers, 0.99) if len(numbers) >= P99_MIN_SAMPLES else _TOO_FEW
    uncounted = _UNCOUNTED if any(answer.prompt_tokens is None for answer in answers) else None
    gapless = None if all(any(map(_spread, each.variant)) for each in trace.rounds) else _ONE_EVENT
    rates = (("prefill_tps", prefill_tps, uncounted), ("decode_tps", decode_tps, gapless), ("tps", output_tps, None))
    for name, rate, lacking in rates:
        if lacking:
            values |= dict.fromkeys((name, f"{name}_low", f"{name}_high"), lacking)
        else:
            values |= _with_interval(name, [rate(each.variant) for each in trace.rounds])
    paired = [each for each in trace.rounds if each.anchor]
    if not paired:
        none = Missing(trace.absent.get("anchor", "no anchor could be had for this runtime here"))
        return values | {column.name: none for column in _ANCHORED}
    for name, rate in (("prefill", prefill_tps), ("decode", decode_tps)):
        values[f"anchor_{name}_tps"] = median(rate(each.anchor) for each in paired)
        values |= _with_interval(f"{name}_ratio", [_matched_ratio(each, rate) for each in paired])
    return values


def prefill_tps(answers: Sequence[Generation]) -> float:
    """Prompt tokens over prefill time."""
    return sum(answer.prompt_tokens or 0 for answer in answers) / sum(answer.prefill_s for answer in answers)


def decode_tps(answers: Sequence[Generation]) -> float:
    """Tokens after the first over the time between tokens."""
    return 1 / (seconds_per_token(answers) or math.nan)


def seconds_per_token(answers: Sequence[Generation]) -> float | None:
    """Time between tokens over tokens after the first; None where every answer came in one piece."""
    decoded = [answer for answer in answers if _spread(answer)]
    tokens = sum(answer.tokens - answer.first_tokens for answer in decoded)
    return sum(sum(answer.gaps_s) for answer in decoded) / tokens if tokens else None


def output_tps(answers: Sequence[Generation]) -> float:
    """Output tokens over end-to-end time."""
    return sum(answer.tokens for answer in answers) / sum(answer.e2e_s for answer in answers)


def _spread(answer: Generation) -> bool:
    """Whether any time passed between its tokens; a server may send them all in one piece."""
    return answer.tokens > answer.first_tokens and any(answer.gaps_s)


def _matched_ratio(each: Round, rate: Callable[[Sequence[Generation]], float]) -> float:
    """The variant's rate over the anchor's on the prompts that the anchor answered, so that lengths cancel."""
    prompts = {answer.prompt for answer in each.anchor}
    matched = [answer for answer in each.variant if answer.prompt in prompts]
    return rate(matched) / rate(each.anchor)


def _with_interval(name: str, numbers: Sequence[float]) -> dict[str, Value]:
    interval: tuple[Value, Value] = (
        median_interval(numbers)
        or (Missing(f"{len(numbers)} rounds are too few for a 95 % interval of the median, which needs 6"),) * 2
    )
    return {name: median(numbers), f"{name}_low": interval[0], f"{name}_high": interval[1]}
