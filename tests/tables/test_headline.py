"""A decision in words: one line within 100 columns, what to know with it, and a reason for each of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.advice.decision import RULE, Choice, Limits, Rejection, decide
from quantbench.advice.headline import COLUMNS, context, figures, headline, named, others
from quantbench.advice.pareto import Candidate

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from quantbench.core.record import Record

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]

NAMES = st.text("abcdefghijkq_-+0123456789", min_size=1, max_size=14).map("prune/{}".format)


def candidate(name: str, **changes: Any) -> Candidate:
    figures: dict[str, Any] = {
        "weight_bytes": 4.74e6, "need_bytes": 4.74e6, "bits_per_weight": 6.58, "tps": 2660.0, "tps_low": 2630.0,
        "tps_high": 2710.0, "kld": 0.001359, "kld_low": 0.0012, "kld_high": 0.0015, "kld_se": 0.000059, "tps_ratio": 5.78,
    }  # fmt: skip
    return Candidate(name=name, **{**figures, **changes})


def choice(pick: Candidate | None, *rejected: Rejection, **changes: Any) -> Choice:
    known: dict[str, Any] = {
        "model": "canary", "prompts": "ten", "run_id": "run-1", "instrument_check": False, "reference": "torch/fp32",
        "limits": Limits(memory_bytes=None, max_kld=0.056, min_tps=None), "undecided": (), "disturbed": (), "runner_up": None,
        "nearest": None,
    }  # fmt: skip
    return Choice(pick=pick, rejected=rejected, **{**known, **changes})


def tied(name: str) -> Rejection:
    return Rejection(name=name, reason="larger, and as fast", candidate=candidate(name), tied=True)


def test_the_line_says_variant_size_speed_ratio_kld_and_what_is_as_fast() -> None:
    made = choice(candidate("gguf/q6_k"), tied("gguf/q5_k_m"), Rejection(name="torch/fp32", reason="slower than gguf/q6_k"))

    assert headline(made) == (
        "Ship gguf/q6_k: 4.74 MB, 2660 tok/s (about 5.8x fp32), KLD 0.00136 ± 0.00006; as fast: q5_k_m"
    )
    assert context(made) == "2 others: quantbench recommend --why"
    assert named(made) == ["gguf/q6_k", "gguf/q5_k_m"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alternated": True}, "2660 tok/s (5.8x fp32)"),
        ({"disturbed": True}, "2660~ tok/s, KLD"),
        ({"tps_ratio": None}, "2660 tok/s, KLD"),
        ({"need_bytes": 9.48e6}, "4.74 MB, 9.48 MB running, 2660 tok/s"),
        ({"kld": 2.09e-7, "kld_se": 0.14e-7}, "KLD 2.09e-07 ± 0.14e-07"),
        ({"kld": 0.183, "kld_se": 0.0091}, "KLD 0.183 ± 0.009"),
        ({"kld_se": None}, "KLD 0.0014"),
    ],
)
def test_marks_and_figures_of_the_pick(changes: dict[str, Any], said: str) -> None:
    assert said in headline(choice(candidate("gguf/q6_k", **changes)))


@given(NAMES, st.lists(NAMES, max_size=6, unique=True), st.sampled_from([None, 24 * 2**30]))
def test_it_fits_a_hundred_columns_and_drops_no_figure(name: str, names: list[str], memory: int | None) -> None:
    limits = Limits(memory_bytes=memory, max_kld=0.056, min_tps=None)
    said = headline(choice(candidate(name, need_bytes=5e6), *map(tied, names), limits=limits))

    assert len(said) <= COLUMNS
    assert f"ship {name}: 4.74 mb, 5 mb running, 2660 tok/s" in said.lower()
    assert "KLD 0.00136 ± 0.00006" in said


def test_what_holds_for_this_model_only_and_what_memory_leaves_out_is_said_below() -> None:
    limits = Limits(memory_bytes=24 * 2**30, max_kld=0.056, min_tps=None)
    made = choice(candidate("gguf/q6_k"), instrument_check=True, limits=limits)

    assert headline(made).startswith("Under 24 GiB ship gguf/q6_k: ")
    assert context(made) == (
        "KV cache and activations come on top of the weights; canary is an instrument check: this holds for canary only"
    )


def test_without_a_pick_the_nearest_is_named_with_its_limit(write: Write, full: list[Record]) -> None:
    [made] = decide(write(full), memory_bytes=600_000)

    assert made.pick is None
    assert headline(made) == "Ship none within the limits; nearest is gguf/q4_k_m, needs more than 600 kB"
    assert named(made) == ["gguf/q4_k_m"]


def test_where_no_variant_has_all_figures_that_is_said(write: Write, record: Make) -> None:
    [made] = decide(write([record("torch/fp32", control=True)]))

    assert headline(made).startswith("Ship none: no variant has all the figures that a pick needs")
    assert context(made) == "canary is an instrument check: this holds for canary only"


def test_every_other_variant_has_its_reason(write: Write, full: list[Record]) -> None:
    [made] = decide(write(full))
    reasons = {other.name: other.reason for other in others(made)}

    assert reasons == {
        "gguf/q5_k_m": "slower than gguf/q4_k_m", "gguf/q6_k": "slower than gguf/q4_k_m",
        "gguf/q8_0": "slower than gguf/q4_k_m",
        "gguf/f16": "slower than gguf/q4_k_m", "torch/fp32": "slower than gguf/q4_k_m",
        "torch/fp16": "dominated by gguf/f16", "torch/bf16": "dominated by gguf/f16",
        "bitsandbytes/int8": "dominated by gguf/q8_0", "bitsandbytes/nf4-dq": "KLD above 0.056",
        "gguf/q3_k_m": "KLD above 0.056", "gguf/q2_k": "KLD above 0.056",
    }  # fmt: skip
    assert others(made)[0].name == "gguf/q5_k_m"  # the runner-up
    assert figures(others(made)[0].candidate) == ("712 kB", "561", "0.013")
    assert figures(None) == ("–", "–", "–")
    assert len(RULE) <= 100
