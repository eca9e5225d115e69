"""A metric of one's own, in one file, with a signal: what it wants to see while answers are timed.

Install it with an entry point, and its columns are in the parquet files, the overview, the report and the comparison::

    [project.entry-points."quantbench.metrics"]
    load_average = "own_metric"
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean

from quantbench.core.record import Column, Gate, Missing, Value
from quantbench.core.signals import Watched
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric


@contextmanager
def watch_load(during: Watched) -> Iterator[None]:
    """Looks at the load after each round of timed answers, when no clock runs."""
    seen: list[float] = []
    during.after_round(lambda: seen.append(os.getloadavg()[0]))
    yield
    if during.name == "latency":
        during.tell({"highest": max(seen)} if seen else "no round was timed")


@metric(
    Column(
        "load_average_max", "processes", title="Load", shown="overview", show=".1f",
        doc="highest load average of the last minute, after a timed round", formula="max over the rounds",
        source="getloadavg(3)",
    ),
    Column(
        "answer_tokens_mean", "tokens", "higher", title="Answer, tokens", shown="overview", show=".1f", gate=Gate(least=0.05),
        doc="mean length of the greedy answers", formula="sum of tokens / answers", source="here",
    ),
    signal=watch_load,
)  # fmt: skip
def load_average(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """How busy the machine was while answers were timed, and how long they were"""
    told = trace.signals.get("load_average", "nothing was timed by a model in this process")
    lengths = [len(answer.tokens) for answer in trace.answers if answer.tokens is not None]
    return {
        "load_average_max": Missing(told) if isinstance(told, str) else told["highest"],
        "answer_tokens_mean": fmean(lengths) if lengths else Missing("no answer has token ids"),
    }
