"""A server's likeliest next tokens against the reference's, at positions of its continuations that text can reach.

A server takes text, so teacher forcing must go through text: only those positions are requested where the prompt and the
continuation so far, written out as text, encode to the very same ids again. Tokens are compared by their text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from quantbench.core.trace import Reference, TopLogprobs
from quantbench.measuring.passes.similarity import LOGPROBS_FILE
from quantbench.methods import Endpoint
from quantbench.models.tokenizer import Tokenizer, added_text

K = 5
_NAMED = 50
"""So many of the reference's likeliest tokens are looked for among the server's; any other counts as part of the tail."""

LEAST_TAIL = 1e-6
"""Servers round log-probabilities, so what they leave for other tokens may come out as nothing, or less."""

POSITIONS = 5
"""Positions requested per prompt; each is one request."""

NO_LOGPROBS = "the server gives no log-probabilities"
UNREACHABLE = "no position of the reference's continuations could be reached through text"
_LOOK_AHEAD = 32
"""Positions of a continuation that are tried; later ones rarely survive the round trip through text."""


@dataclass(frozen=True, slots=True)
class Place:
    """One position: the reference's likeliest tokens in order, as text with log-probability, and the server's by text."""

    reference: Sequence[tuple[str, float]]
    server: Mapping[str, float]


def compare_top_tokens(
    endpoint: Endpoint, tokenizer: Tokenizer, prompts: Sequence[str], reference: Reference, folder: Path
) -> TopLogprobs | str:
    """Ask the server for its likeliest tokens and compare; a string says why nothing could be compared.

    ``prompts`` are all of the reference's, or the first of them. ``folder`` is its artifact, with one row of log-probabilities
    for each position of each continuation.
    """
    import numpy as np

    expected = np.load(folder / LOGPROBS_FILE, mmap_mode="r", allow_pickle=False)
    places = []
    row = 0
    for text, ids, continuation in zip(prompts, reference.prompt_tokens, reference.continuations, strict=False):
        for position, asked in islice(_reachable(tokenizer, text, ids, continuation), POSITIONS):
            given = endpoint.top_tokens(asked, K)
            if given is None:
                return NO_LOGPROBS
            logprobs = expected[row + position]
            before = [*ids, *continuation[:position]]
            likeliest = np.argsort(logprobs)[::-1][:_NAMED].tolist()
            expected_tokens = [(added_text(tokenizer, before, token), float(logprobs[token])) for token in likeliest]
            places.append(Place(expected_tokens, given))
        row += len(continuation)
    return summarize(places) or UNREACHABLE


def summarize(places: Sequence[Place]) -> TopLogprobs | None:
    """How well the two agree over all places whose likeliest token has a text of its own; None without such a place.

    Some servers drop the space at the start of a token: where none of their tokens has one, spaces are ignored.
    """
    bare = not any(text[:1].isspace() for place in places for text in place.server)
    k = min(K, max((len(place.server) for place in places), default=0))
    top1, overlaps, errors, divergences, tails = [], [], [], [], []
    for place in places:
        theirs = _by_text(place.server.items(), bare=bare)
        ours = _by_text(list(place.reference)[: min(k, len(theirs))], bare=bare)
        if not ours or not _plain(place.reference[0][0], bare=bare):
            continue
        shared = ours.keys() & theirs.keys()
        top1.append(next(iter(ours)) == max(theirs, key=theirs.__getitem__))
        overlaps.append(len(shared) / len(ours))
        errors += [abs(ours[text] - theirs[text]) for text in shared]
        divergence, tail = _coarse(_by_text(place.reference, bare=bare), theirs)
        divergences.append(divergence)
        tails.append(tail)
    if not top1:
        return None
    return TopLogprobs(
        positions=len(top1),
        k=k,
        top1=sum(top1) / len(top1),
        overlap=sum(overlaps) / len(overlaps),
        error=sum(errors) / len(errors) if errors else None,
        kld=sum(divergences) / len(divergences),
        tail=sum(tails) / len(tails),
    )


def _coarse(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, float]:
    """The divergence of two distributions over the tokens that both name and one bucket for all others; ours in that bucket.

    Merging outcomes can only lower a divergence (the data-processing inequality), so this is a lower bound of the one over the
    whole vocabulary. Taking the server's tail for no less than ``LEAST_TAIL`` lowers it further.
    """
    shared = [(math.exp(ours[text]), math.exp(theirs[text])) for text in sorted(ours.keys() & theirs.keys())]
    tail = max(0.0, 1.0 - sum(p for p, _ in shared))
    pairs = [*shared, (tail, max(LEAST_TAIL, 1.0 - sum(q for _, q in shared)))]
    return max(0.0, sum(p * math.log(p / q) for p, q in pairs if p > 0)), tail


def _reachable(tokenizer: Tokenizer, text: str, ids: Sequence[int], continuation: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Positions with the text that leads there: prompt and continuation so far, which encode to the very same ids."""
    start = tokenizer.decode(ids)
    for position in range(min(_LOOK_AHEAD, len(continuation))):
        wanted = [*ids, *continuation[:position]]
        asked = text + tokenizer.decode(wanted).removeprefix(start)
        if tokenizer.encode(asked) == wanted:
            yield position, asked


def _by_text(pairs: Iterable[tuple[str, float]], *, bare: bool) -> dict[str, float]:
    """Log-probabilities by text: of several tokens with the same text the likeliest, and none for an empty text."""
    found: dict[str, float] = {}
    for text, value in sorted(pairs, key=lambda each: -each[1]):
        if plain := _plain(text, bare=bare):
            found.setdefault(plain, value)
    return found


def _plain(text: str, *, bare: bool) -> str:
    return "" if "\ufffd" in text else text.lstrip() if bare else text
