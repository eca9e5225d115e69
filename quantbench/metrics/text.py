"""Free-running greedy answers against the reference's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantbench.core.record import Column, Missing, Output, Value
from quantbench.core.statistics import mean_by_cluster
from quantbench.core.trace import Answer, Reference, Trace
from quantbench.metrics import metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SE = "sqrt(sum_c (x_c - mean(x))^2 / (C * (C - 1))) over C prompts"
_SE_SOURCE = "standard error of a mean, as usual"
_COLUMNS = (
    Column(
        "exact_match", "ratio", "higher", doc="share of prompts answered with the same tokens; by a server, the same text",
        formula="mean(x_c), x_c = 1 if the answers to prompt c are equal, else 0", source="quantbench",
    ),
    Column("exact_match_se", "ratio", doc="standard error of exact_match", formula=_SE, source=_SE_SOURCE),
    Column(
        "first_divergence", "tokens", "higher", doc="mean position of the first different token; a match counts as its length",
        formula="mean(x_c), x_c = first position at which the answers differ, from 0",
        source="Divergent Token Metrics, arXiv:2311.01544: first divergent token",
    ),
    Column("first_divergence_se", "tokens", doc="standard error of first_divergence", formula=_SE, source=_SE_SOURCE),
    Column(
        "token_match", "ratio", "higher", doc="share of positions with the same token, mean over prompts",
        formula="mean(x_c), x_c = equal positions / length of the longer answer", source="quantbench",
    ),
    Column("token_match_se", "ratio", doc="standard error of token_match", formula=_SE, source=_SE_SOURCE),
    Column(
        "chrf", "chrF", "higher", title="chrF", show=".1f", shown="report", place=33,
        doc="sacrebleu sentence chrF2 of the answers, 0 to 100, mean over prompts",
        formula="mean(x_c), x_c = F2 of the precision and recall of character 1- to 6-grams; 100 for equal texts",
        source="sacrebleu chrF2 (Popovic 2015)",
    ),
    Column("chrf_se", "chrF", doc="standard error of chrf", formula=_SE, source=_SE_SOURCE),
)  # fmt: skip
_NO_IDS = Missing("a server gives text, not token ids")


@metric(*_COLUMNS)
def text(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Exact match, first divergence, token match and chrF of greedy answers"""
    if reference is None or not trace.answers:
        none = Missing(trace.absent.get("answers", "no reference to compare with: it cannot open this checkpoint here"))
        return {column.name: none for column in _COLUMNS}
    outputs = compare_answers(trace.answers, reference.answers)
    per_prompt = {name: [float(getattr(output, name)) for output in outputs] for name in ("exact_match", "chrf")}
    values: dict[str, Value] = {}
    if any(output.token_match is None for output in outputs):
        values |= {column.name: _NO_IDS for column in _COLUMNS if column.name.startswith(("first_divergence", "token_match"))}
    else:
        per_prompt["token_match"] = [float(output.token_match or 0) for output in outputs]
        per_prompt["first_divergence"] = [
            float(len(output.reference_tokens) if output.first_divergence is None else output.first_divergence)
            for output in outputs
        ]
    for name, numbers in per_prompt.items():
        mean, error = mean_by_cluster(numbers, range(len(numbers)))
        values[name] = mean
        values[f"{name}_se"] = Missing("one prompt has no spread between prompts") if error is None else error
    return values


def compare_answers(
    variant: Sequence[Answer], reference: Sequence[Answer], columns: Path | None = None
) -> tuple[Output, ...]:
    """The rows of the ``outputs`` table: each prompt's two answers with their similarity.

    ``columns`` is the file of scored positions (see ``Trace``); without it their fields stay empty.
    """
    outputs = []
    scores = _scores(columns) if columns else {}
    for index, (ours, theirs) in enumerate(zip(variant, reference, strict=True)):
        exact, first, share = _compare_ids(ours, theirs)
        outputs.append(
            Output(
                index=index,
                prompt=ours.prompt,
                prompt_tokens=ours.prompt_tokens,
                reference_tokens=theirs.tokens or (),
                variant_tokens=ours.tokens,
                reference_text=theirs.text,
                variant_text=ours.text,
                exact_match=exact,
                first_divergence=first,
                token_match=share,
                chrf=chrf(ours.text, theirs.text),
                **scores.get(index, {}),
            )
        )
    return tuple(outputs)


def chrf(text: str, other: str) -> float:
    """Sacrebleu's sentence chrF2 of ``text`` against ``other``, 0 to 100; equal texts, even empty ones, score 100."""
    from sacrebleu.metrics.chrf import CHRF

    return 100.0 if text == other else float(CHRF().sentence_score(text, [other]).score)


def _scores(columns: Path) -> dict[int, dict[str, Any]]:
    """Figures of each prompt's scored positions as fields of Output, by the prompt's index."""
    import numpy as np

    with np.load(columns, allow_pickle=False) as arrays:
        prompt, kld, nll, top1 = (arrays[name] for name in ("prompt", "kld", "nll", "top1"))
    found = {}
    for index in np.unique(prompt):
        here = prompt == index
        found[int(index)] = {
            "scored_tokens": int(here.sum()),
            "kld": tuple(kld[here].tolist()),
            "kld_mean": _finite_mean(kld[here]),
            "top1_agreement": float(top1[here].mean()),
            "nll_mean": _finite_mean(nll[here]),
        }
    return found


def _finite_mean(values: NDArray[Any]) -> float | None:
    mean = float(values.mean())
    return mean if math.isfinite(mean) else None


def _compare_ids(ours: Answer, theirs: Answer) -> tuple[bool, int | None, float | None]:
    """Equality, first divergence and share of equal positions; of answers without ids only the equality of their texts.

    White space around a text does not count: a tokenizer drops it at the start of an answer, a server sends it.
    """
    if ours.tokens is None or theirs.tokens is None:
        return ours.text.strip() == theirs.text.strip(), None, None
    equal = [a == b for a, b in zip(ours.tokens, theirs.tokens, strict=False)]
    longest = max(len(ours.tokens), len(theirs.tokens))
    exact = ours.tokens == theirs.tokens
    first = None if exact else (equal.index(False) if False in equal else len(equal))
    return exact, first, sum(equal) / longest if longest else 1.0
