"""Two variants on the same prompts: where their answers diverge, how far each is from the reference, and which is further.

Differences of KLD are paired. Over all prompts, the prompts are the clusters. Within a prompt, blocks of consecutive positions
are, because neighbours are correlated, and the p values are corrected for the number of prompts (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Literal, Self

from quantbench.core.errors import QuantbenchError
from quantbench.core.record import Output
from quantbench.core.statistics import Difference, blocks, holm, paired_difference
from quantbench.metrics.text import chrf

ALPHA = 0.05
"""A difference counts where its p value is smaller; within prompts, where its corrected p value is."""

BLOCK_POSITIONS = 16
"""Least positions of a block: beyond this, longer blocks hardly raise the standard error of the mean.

On the canary (gguf/q4_k_m minus gguf/q8_0, 128 positions a prompt) it is 1.3e-3 nats for single positions, 1.7e-3 for blocks of
8, 1.9e-3 of 16 and 2.0e-3 of 32.
"""

Direction = Literal["first further", "second further", "no difference", "equal", "not tested"]


class IncomparableError(QuantbenchError):
    """Two variants that did not answer the same prompts or were not scored on the same positions."""

    exit_code = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is contrasted: two variants as ``method/precision``, what both were compared with, and where they were measured.

    ``unscored`` says why there is no KLD, where there is none.
    """

    first: str
    second: str
    reference: str
    model: str
    prompts: str
    run_id: str
    instrument_check: bool = False
    unscored: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPair:
    """The two answers to one prompt.

    ``parts_at_token`` is how many token ids are equal before the answers diverge, None where they do not or have no ids;
    ``parts_at_character`` is the same for the texts. ``chrf`` is between the two texts, the mean of both directions. ``kld`` is
    the first's KLD minus the second's in nats, None where it was not scored or there are too few positions; its ``mde`` is at
    the level that Holm's correction starts with.
    """

    first: Output
    second: Output
    parts_at_token: int | None
    parts_at_character: int | None
    chrf: float
    kld: Difference | None = None
    p_adjusted: float | None = None

    @property
    def has_ids(self) -> bool:
        """Whether both answers came with token ids."""
        return self.first.variant_tokens is not None and self.second.variant_tokens is not None

    @property
    def same(self) -> bool:
        """Whether the answers are equal: their ids, or where one has none their texts."""
        return (self.parts_at_token if self.has_ids else self.parts_at_character) is None

    @property
    def scored(self) -> bool:
        """Whether both have a finite KLD at every position."""
        return bool(self.first.kld and self.second.kld and all(map(math.isfinite, (*self.first.kld, *self.second.kld))))

    @property
    def verdict(self) -> Direction:
        """Which of the two is further from the reference on this prompt."""
        if self.scored and self.first.kld == self.second.kld:
            return "equal"
        return _verdict(self.kld, self.p_adjusted)

    @property
    def kld_difference(self) -> float:
        """Mean KLD of the first minus the second's in nats; only where both were scored."""
        return fmean(self.first.kld or ()) - fmean(self.second.kld or ())

    def left(self, answer: Output) -> bool:
        """Whether that answer had already left the reference's where the two diverge."""
        parts, left = self.parts_at_token, answer.first_divergence
        return parts is not None and left is not None and left <= parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """Of one variant from the reference: mean KLD in nats, and the share of positions where both put the same token first."""

    kld_mean: float
    top1_agreement: float

    @classmethod
    def of(cls, outputs: Sequence[Output]) -> Self:
        """The means over all scored positions of ``outputs``."""
        weights = [output.scored_tokens or 0 for output in outputs]
        return cls(
            kld_mean=fmean(value for output in outputs for value in output.kld or ()),
            top1_agreement=fmean((output.top1_agreement or 0.0 for output in outputs), weights),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """All prompts of one set. ``kld`` is the first's mean KLD minus the second's in nats, clustered by prompt."""

    about: About
    pairs: tuple[AnswerPair, ...]
    kld: Difference | None

    @property
    def scored(self) -> tuple[AnswerPair, ...]:
        """The pairs with a KLD on both sides."""
        return tuple(pair for pair in self.pairs if pair.scored)

    @property
    def distances(self) -> tuple[Distance, Distance] | None:
        """How far the first and the second are from the reference over all scored positions; None where there are none."""
        if not self.scored:
            return None
        first = Distance.of([pair.first for pair in self.scored])
        return first, Distance.of([pair.second for pair in self.scored])

    @property
    def verdict(self) -> Direction:
        """Which of the two is further from the reference, over all prompts."""
        if self.scored and all(pair.verdict == "equal" for pair in self.scored):
            return "equal"
        return _verdict(self.kld, self.kld.p_value if self.kld else None)

    @property
    def median_parting(self) -> float | None:
        """Median number of equal tokens before the answers diverge, over the prompts where they do."""
        found = [pair.parts_at_token for pair in self.pairs if pair.parts_at_token is not None]
        return median(found) if found else None


def contrast(first: Sequence[Output], second: Sequence[Output], about: About) -> Contrast:
    """The answers of two variants to one prompt set, prompt by prompt. IncomparableError if the prompts differ."""
    pairs = tuple(_pair(*each) for each in _matched(first, second, about))
    scored = [pair for pair in pairs if pair.scored]
    clusters = [number for number, pair in enumerate(scored) for _ in pair.first.kld or ()]
    overall = paired_difference(_values(scored, "first"), _values(scored, "second"), clusters) if scored else None
    return Contrast(about=about, pairs=_tested(pairs), kld=overall)


def _matched(first: Sequence[Output], second: Sequence[Output], about: About) -> list[tuple[Output, Output]]:
    """Both answers to each prompt, by its index."""
    sides = [{output.index: output for output in outputs} for outputs in (first, second)]
    both, mend = f"{about.first} and {about.second} of run {about.run_id} are incomparable", "measure them again"
    if sides[0].keys() != sides[1].keys():
        raise IncomparableError(f"{both}: they answered different prompts, {len(sides[0])} and {len(sides[1])}; {mend}")
    found = [(output, sides[1][index]) for index, output in sorted(sides[0].items())]
    for one, other in found:
        asked = [(each.prompt, each.prompt_tokens, each.reference_tokens, each.reference_text) for each in (one, other)]
        if asked[0] != asked[1]:
            raise IncomparableError(f"{both}: prompt {one.index + 1}, or the reference's answer to it, differs; {mend}")
        if one.kld and other.kld and len(one.kld) != len(other.kld):
            counts = f"{len(one.kld)} and {len(other.kld)} positions"
            raise IncomparableError(f"{both}: on prompt {one.index + 1} they were scored at {counts}; {mend}")
    return found


def _pair(first: Output, second: Output) -> AnswerPair:
    texts = [first.variant_text, second.variant_text]
    ids, others = first.variant_tokens, second.variant_tokens
    if ids is None or others is None:  # a server may trim or add white space around the answer
        texts = [text.strip() for text in texts]
        first, second = replace(first, variant_text=texts[0]), replace(second, variant_text=texts[1])
    return AnswerPair(
        first=first,
        second=second,
        parts_at_token=None if ids is None or others is None else _parting(ids, others),
        parts_at_character=_parting(*texts),
        chrf=fmean(chrf(*order) for order in (texts, reversed(texts))),
    )


def _parting(first: Sequence[object], second: Sequence[object]) -> int | None:
    """Where two sequences diverge; None where they are equal."""
    if first == second:
        return None
    equal = (position for position, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return next(equal, min(len(first), len(second)))


def _tested(pairs: Sequence[AnswerPair]) -> tuple[AnswerPair, ...]:
    """The pairs with their own difference of KLD, and p values corrected for all that could be tested."""
    found = {number: difference for number, pair in enumerate(pairs) if (difference := _within(pair, 1 - ALPHA))}
    adjusted = dict(zip(found, holm([difference.p_value for difference in found.values()]), strict=True))
    tested = list(pairs)
    for number, difference in found.items():
        strict = _within(pairs[number], 1 - ALPHA / len(found))
        assert strict is not None
        tested[number] = replace(pairs[number], kld=replace(difference, mde=strict.mde), p_adjusted=adjusted[number])
    return tuple(tested)


def _within(pair: AnswerPair, confidence: float) -> Difference | None:
    """The difference within one prompt, over blocks of its positions."""
    if not pair.scored:
        return None
    assert pair.first.kld is not None
    assert pair.second.kld is not None
    return paired_difference(pair.first.kld, pair.second.kld, blocks(len(pair.first.kld), BLOCK_POSITIONS), confidence)


def _values(pairs: Sequence[AnswerPair], side: Literal["first", "second"]) -> list[float]:
    return [value for pair in pairs for value in (pair.first if side == "first" else pair.second).kld or ()]


def _verdict(kld: Difference | None, p_value: float | None) -> Direction:
    if kld is None or p_value is None:
        return "not tested"
    if p_value >= ALPHA:
        return "no difference"
    return "first further" if kld.mean > 0 else "second further"
