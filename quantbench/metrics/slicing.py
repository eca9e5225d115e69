"""How scored positions are sliced into forward passes, and how much another slicing would change the figures."""

from __future__ import annotations

from collections.abc import Mapping

from quantbench.core.record import Column, Missing, Value
from quantbench.core.trace import NO_REFERENCE, Reference, Trace
from quantbench.metrics import metric

_WHERE = "over the positions of the first 4 prompts or chunks"
_SOURCE = "quantbench: these prompts are scored once more"

_COLUMNS = (
    Column(
        "score_positions", "tokens", kind="int", doc="most positions that one forward pass reads while scoring",
        formula="one number for all methods, whatever the memory, vocabulary, threads or batch of prompts", source="quantbench",
    ),
    Column(
        "kld_slicing", "nats", "lower", doc="how much kld_mean differs where forward passes are half as long",
        formula=f"|mean(kld) - mean(kld in passes half as long)| {_WHERE}", source=_SOURCE,
    ),
    Column(
        "top1_slicing", "ratio", "lower", doc="how much top1_agreement differs where forward passes are half as long",
        formula=f"|top1_agreement - top1_agreement in passes half as long| {_WHERE}", source=_SOURCE,
    ),
)  # fmt: skip


@metric(*_COLUMNS)
def slicing(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Positions per forward pass, and how KLD and top-1 depend on them"""
    seen = trace.slicing
    if seen is None:
        none = Missing(trace.absent.get("columns", trace.absent.get("slicing", NO_REFERENCE)))
        return {column.name: none for column in _COLUMNS}
    none = Missing(NO_REFERENCE)
    return {
        "score_positions": seen.positions,
        "kld_slicing": none if seen.kld is None else seen.kld,
        "top1_slicing": none if seen.top1 is None else seen.top1,
    }
