"""The middle gap between tokens, raw and over the anchor's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantbench.core.record import Missing
from quantbench.core.trace import Generation, Round, Trace
from quantbench.metrics.itl import itl


def answer(*gaps_s: float, tokens: int = 0) -> Generation:
    return Generation(prompt=0, prompt_tokens=5, prefill_s=0.5, gaps_s=gaps_s, e2e_s=0.5 + sum(gaps_s), tokens=tokens)


def test_it_is_the_median_of_all_gaps_and_its_ratio_the_anchors_over_it(trace: Trace) -> None:
    rounds = (
        Round(index=0, variant=(answer(0.1, 0.2), answer(0.3, 9.0)), anchor=(answer(0.05, 0.06),)),
        Round(index=1, variant=(answer(0.2, 0.25),), anchor=(answer(0.07, 5.0),)),
    )
    found = itl.compute(replace(trace, rounds=rounds), None)
    own = np.median([0.1, 0.2, 0.3, 9.0, 0.2, 0.25])
    assert found["itl_s"] == pytest.approx(own)
    assert found["itl_ratio"] == pytest.approx(np.median([0.05, 0.06, 0.07, 5.0]) / own)


def test_a_step_of_a_batch_is_a_gap_of_each_of_its_sequences(trace: Trace) -> None:
    variant = Generation(prompt=0, prompt_tokens=20, prefill_s=0.5, gaps_s=(0.1, 0.3), e2e_s=0.9, batch=4)
    anchor = Generation(prompt=0, prompt_tokens=20, prefill_s=0.5, gaps_s=(0.05, 0.15), e2e_s=0.7, batch=4)
    found = itl.compute(replace(trace, rounds=(Round(index=0, variant=(variant,), anchor=(anchor,)),)), None)
    assert found["itl_s"] == pytest.approx(0.2)
    assert found["itl_ratio"] == pytest.approx(0.5)


def test_without_an_anchor_there_is_no_ratio(trace: Trace) -> None:
    found = itl.compute(replace(trace, rounds=(Round(index=0, variant=(answer(0.1, 0.2),), anchor=()),)), None)
    assert found["itl_s"] == pytest.approx(0.15)
    assert isinstance(found["itl_ratio"], Missing)


@pytest.mark.parametrize(
    "rounds", [(), (Round(index=0, variant=(answer(0.1, tokens=5),), anchor=(answer(0.1),)),)], ids=["none", "in one piece"]
)
def test_what_was_not_seen_is_missing(trace: Trace, rounds: tuple[Round, ...]) -> None:
    found = itl.compute(replace(trace, rounds=rounds), None)
    assert all(isinstance(value, Missing) for value in found.values())
