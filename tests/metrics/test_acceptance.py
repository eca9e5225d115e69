"""The expected acceptance rate: its mean and error against numpy, and its meaning against drawn tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from quantbench.core.record import Missing
from quantbench.metrics.acceptance import acceptance

if TYPE_CHECKING:
    from pathlib import Path

    from quantbench.core.trace import Trace

RNG = np.random.default_rng(11)


def test_it_is_the_mean_of_all_positions_with_an_error_by_prompt(trace: Trace, tmp_path: Path) -> None:
    """Of prompts of equal length it is the standard error of their means."""
    from scipy.stats import sem

    ear = RNG.beta(20.0, 1.0, (4, 25))
    path = tmp_path / "scored.npz"
    np.savez(path, prompt=np.repeat(np.arange(4, dtype=np.int32), 25), kld=ear.ravel(), ear=ear.ravel())
    values = acceptance.compute(replace(trace, columns=path), None)
    assert values == pytest.approx({"ear": ear.mean(), "ear_se": sem(ear.mean(axis=1))})


def test_it_is_what_speculative_sampling_accepts(tmp_path: Path) -> None:
    """Tokens drawn from the variant, each accepted with probability min(1, p / q), as in Leviathan et al., algorithm 1."""
    from scipy.special import log_softmax

    from quantbench.measuring.passes.similarity import LOGPROBS_FILE, score_columns

    logits = RNG.normal(0.0, 2.0, (2, 6)).astype(np.float32)
    theirs = log_softmax(logits + RNG.normal(0.0, 1.0, logits.shape), axis=1).astype(np.float32)
    np.save(tmp_path / LOGPROBS_FILE, theirs)

    class Drafts:
        def score(self, _tokens: object, first: int = 0) -> object:
            yield logits

    score_columns(Drafts(), [((1,), (2, 3))], tmp_path, tmp_path / "scored.npz")  # type: ignore[arg-type]
    with np.load(tmp_path / "scored.npz") as arrays:
        ear = arrays["ear"]
    for position in range(2):
        p, q = np.exp(theirs[position]), np.exp(log_softmax(logits[position].astype(float)))
        drafted = RNG.choice(6, size=200_000, p=q / q.sum())
        accepted = RNG.random(len(drafted)) < (p / q)[drafted]
        assert accepted.mean() == pytest.approx(ear[position], abs=4 * accepted.std() / np.sqrt(len(drafted)))


def test_where_there_is_none_the_reason_stands(trace: Trace, tmp_path: Path) -> None:
    """Nothing scored; no reference; columns that an earlier version wrote; one prompt."""
    none = Missing("no reference to compare with: it cannot open this checkpoint here")
    assert set(acceptance.compute(replace(trace, columns=None), None).values()) == {none}
    path = tmp_path / "alone.npz"
    np.savez(path, prompt=np.zeros(3, np.int32), nll=np.ones(3))
    assert set(acceptance.compute(replace(trace, columns=path), None).values()) == {none}
    before = Missing("it was measured before quantbench kept this; run it again")
    assert set(acceptance.compute(trace, None).values()) == {before}
    path = tmp_path / "one.npz"
    np.savez(path, prompt=np.zeros(3, np.int32), kld=np.zeros(3), ear=np.ones(3))
    found = acceptance.compute(replace(trace, columns=path), None)
    assert found == {"ear": 1.0, "ear_se": Missing("one prompt has no spread between prompts")}
