"""How fast a variant scores tokens whose next token is known."""

from __future__ import annotations

from collections.abc import Mapping

from quantbench.core.record import Column, Missing, Value
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric


@metric(
    Column(
        "scoring_tps", "tokens/s", "higher", timed=True,
        doc="tokens read while scoring over the seconds it took, comparison with the reference included",
        formula="sum over prompts or chunks of tokens read / sum of score_s",
        source="measured here; llama-perplexity's 'prompt eval time' counts the model alone",
    )
)  # fmt: skip
def scoring(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Tokens scored per second"""
    seconds = sum(trace.score_s)
    if not seconds:
        return {"scoring_tps": Missing(trace.absent.get("columns", trace.absent.get("score_s", "nothing was scored")))}
    return {"scoring_tps": trace.score_tokens / seconds}
