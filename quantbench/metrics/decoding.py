"""The way that tokens were decoded in, and what it took to make it."""

from __future__ import annotations

from collections.abc import Mapping

from quantbench.core.record import Column, Missing, Value
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric

_OWN = "the runtime decides by itself how it decodes"


@metric(
    Column(
        "decode_path", "", kind="string", title="Decode path", doc="what ran between one token and the next",
        formula="eager, static, graph or compiled; checked against eager by equal greedy ids", source="quantbench",
    ),
    Column(
        "decode_fallback", "", kind="string", doc="why it is eager though another path was asked for",
        formula="the error, or the first token that differed", source="quantbench",
    ),
    Column(
        "compile_s", "s", "lower", timed=True, doc="compiling or capturing the decode step, before anything is timed",
        formula="first answer - second answer", source="quantbench",
    ),
)  # fmt: skip
def decoding(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """How tokens were decoded"""
    found = trace.decoding
    if found is None:
        why = Missing(trace.absent.get("decoding", trace.absent.get("rounds", _OWN)))
        return {"decode_path": why, "decode_fallback": why, "compile_s": why}
    return {
        "decode_path": found.path,
        "decode_fallback": found.reason or Missing("the path that was asked for is the one that ran"),
        "compile_s": Missing(f"the {found.path} path is neither compiled nor captured") if found.compile_s is None else found.compile_s,
    }
