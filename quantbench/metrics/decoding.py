"""The way that tokens were decoded in, and what it took to make it."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, median

from quantbench.core.record import Column, Missing, Value
from quantbench.core.trace import Decoding, Reference, Trace
from quantbench.metrics import metric

_OWN = "the runtime decides by itself how it decodes"
_COLUMNS = ("decode_path", "decode_difference", "decode_fallback", "compile_s", "device_step_s", "launch_share")


@metric(
    Column(
        "decode_path", "", kind="string", title="Decode path", doc="what ran between one token and the next",
        formula="eager, static, graph or compiled; greedy ids are those of eager, but for rounding", source="quantbench",
    ),
    Column(
        "decode_difference", "roundings",
        doc="how far eager's greedy tokens are below this path's own choice, at most; 0: the same",
        formula="max over steps of (largest logit - logit of eager's token) / (largest |logit| * eps)", source="quantbench",
    ),
    Column(
        "decode_fallback", "", kind="string", doc="why it is eager though another path was asked for",
        formula="the error, or the first token that differed", source="quantbench",
    ),
    Column(
        "compile_s", "s", "lower", timed=True, doc="compiling or capturing the decode step, before anything is timed",
        formula="first answer - second answer", source="quantbench",
    ),
    Column(
        "device_step_s", "s", "lower", timed=True, doc="kernels of a decode step on the device, without their launching",
        formula="time between CUDA events around replays of the step's graph / replays", source="CUDA: cudaEventElapsedTime",
    ),
    Column(
        "launch_share", "ratio", "lower", timed=True, show=".0%",
        doc="share of a decode step in which the device has nothing to do",
        formula="1 - device_step_s / tpot_s", source="quantbench",
    ),
)  # fmt: skip
def decoding(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """How tokens were decoded"""
    found = trace.decoding
    if found is None:
        why = Missing(trace.absent.get("decoding", trace.absent.get("rounds", _OWN)))
        return dict.fromkeys(_COLUMNS, why)
    uncompiled = Missing(f"the {found.path} path is neither compiled nor captured")
    return {
        "decode_path": found.path,
        "decode_difference": _nothing_compared(found) if found.difference is None else found.difference,
        "decode_fallback": found.reason or Missing("the path that was asked for is the one that ran"),
        "compile_s": uncompiled if found.compile_s is None else found.compile_s,
        **_on_device(found, trace),
    }


def _nothing_compared(found: Decoding) -> Missing:
    return Missing("the path that was asked for gave no answer" if found.reason else "it is eager itself, and was asked for")


def _on_device(found: Decoding, trace: Trace) -> Mapping[str, Value]:
    """How much of a step the device works."""
    step = found.device_step_s
    if step is None:
        return dict.fromkeys(("device_step_s", "launch_share"), Missing(found.no_device_step))
    gaps = [fmean(answer.gaps_s) for each in trace.rounds for answer in each.variant if answer.gaps_s]
    share = max(0.0, 1 - step / median(gaps)) if gaps else Missing("nothing came between tokens to compare it with")
    return {"device_step_s": step, "launch_share": share}
