"""Two variants' answers and distances whose truth is known; statistics against scipy's own tests."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.record import Output
from quantbench.judge.contrast import ALPHA, BLOCK_POSITIONS, About, Contrast, IncomparableError, contrast
from quantbench.judge.contrast.sentence import conclusion

ABOUT = About(
    first="a/4", second="b/8", reference="torch/fp32", model="some/model", prompts="ten", run_id="r1", unscored="a/4: why not"
)
REFERENCE_TOKENS = (1, 2, 3, 4)
POSITIONS = 8 * BLOCK_POSITIONS


def _output(index: int, kld: object = None, tokens: object = REFERENCE_TOKENS, text: str = "the answer") -> Output:
    """An answer to prompt ``index``; by default the reference's own, without a score."""
    values = None if kld is None else tuple(np.asarray(kld, dtype=float).tolist())
    ids = None if tokens is None else tuple(tokens)  # type: ignore[call-overload]
    differing = [at for at, pair in enumerate(zip(ids or (), REFERENCE_TOKENS, strict=False)) if len(set(pair)) > 1]
    left = differing[0] if differing else None
    return Output(
        index=index, prompt=f"prompt {index}", prompt_tokens=(9, index), reference_tokens=REFERENCE_TOKENS, variant_tokens=ids,
        reference_text="the answer", variant_text=text, exact_match=ids == REFERENCE_TOKENS, first_divergence=left,
        token_match=None, chrf=50.0, scored_tokens=len(values) if values else None, kld=values,
        kld_mean=fmean(values) if values else None, top1_agreement=0.75 if values else None, nll_mean=None,
    )  # fmt: skip


def _klds(prompts: int, offset: float = 0.0, seed: int = 0, positions: int = POSITIONS) -> list[np.ndarray]:
    """KLD of two correlated variants: the first's and the second's of each prompt, ``offset`` apart in the mean."""
    rng = np.random.default_rng(seed)
    shared = rng.gamma(0.5, 0.02, (prompts, positions))
    noise = rng.normal(0, 0.002, (2, prompts, positions))
    return [shared + noise[0] + offset, shared + noise[1]]


def _contrast(first: np.ndarray, second: np.ndarray, about: About = ABOUT) -> Contrast:
    sides = [[_output(index, values) for index, values in enumerate(side)] for side in (first, second)]
    return contrast(*sides, about)


# --- where answers part


@pytest.mark.parametrize(
    ("first", "second", "parts"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), None),
        ((1, 2, 9, 4), (1, 2, 3, 4), 2),
        ((9, 2, 3, 4), (1, 2, 3, 4), 0),
        ((1, 2), (1, 2, 3, 4), 2),
        ((), (1,), 0),
        ((), (), None),
    ],
)
def test_answers_part_at_the_first_token_that_differs(
    first: tuple[int, ...], second: tuple[int, ...], parts: int | None
) -> None:
    (pair,) = contrast([_output(0, tokens=first)], [_output(0, tokens=second)], ABOUT).pairs
    assert pair.parts_at_token == parts
    assert pair.same is (parts is None)


@given(st.text(max_size=12), st.text(max_size=12))
def test_the_mark_stands_where_the_texts_first_differ(first: str, second: str) -> None:
    (pair,) = contrast([_output(0, tokens=(1,), text=first)], [_output(0, tokens=(2,), text=second)], ABOUT).pairs
    at = pair.parts_at_character
    if at is None:
        assert first == second
    else:
        assert first[:at] == second[:at]
        assert first[at : at + 1] != second[at : at + 1]


def test_who_had_left_the_reference_where_they_part() -> None:
    """Of two answers that leave it after one and after three tokens, only the first has left it where they part."""
    (pair,) = contrast([_output(0, tokens=(1, 9, 3, 4))], [_output(0, tokens=(1, 2, 3, 9))], ABOUT).pairs
    assert (pair.left(pair.first), pair.left(pair.second)) == (True, False)
    (pair,) = contrast([_output(0, tokens=(8, 2))], [_output(0, tokens=(7, 2))], ABOUT).pairs
    assert (pair.left(pair.first), pair.left(pair.second)) == (True, True)


def test_texts_alone_are_compared_but_for_white_space_around_them() -> None:
    made = contrast([_output(0, tokens=None, text=" the end\n")], [_output(0, text="the end")], ABOUT)
    (pair,) = made.pairs
    assert (pair.same, pair.parts_at_token, pair.parts_at_character, pair.chrf) == (True, None, None, 100.0)
    made = contrast([_output(0, tokens=None, text=" the end")], [_output(0, text="the ant")], ABOUT)
    assert (made.pairs[0].same, made.pairs[0].parts_at_character, made.median_parting) == (False, 4, None)
    assert conclusion(made).endswith("their answers differ on 1 of 1 prompt")


def test_chrf_between_is_sacrebleus_in_both_directions() -> None:
    import sacrebleu

    texts = "the answer is long and good", "an answer"
    made = contrast([_output(0, tokens=(1,), text=texts[0])], [_output(0, tokens=(2,), text=texts[1])], ABOUT)
    expected = [sacrebleu.sentence_chrf(texts[side], [texts[1 - side]]).score for side in (0, 1)]
    assert expected[0] != pytest.approx(expected[1])
    assert made.pairs[0].chrf == pytest.approx(fmean(expected))


# --- statistics


def test_within_a_prompt_it_is_scipys_paired_t_test_of_block_means() -> None:
    from scipy.stats import ttest_rel

    first, second = _klds(3, offset=0.001)
    pairs = _contrast(first, second).pairs
    found = [ttest_rel(*(side[index].reshape(8, -1).mean(axis=1) for side in (first, second))) for index in range(3)]
    for pair, expected in zip(pairs, found, strict=True):
        assert pair.kld is not None
        low, high = expected.confidence_interval(0.95)
        assert (pair.kld.p_value, pair.kld.low, pair.kld.high) == pytest.approx((expected.pvalue, low, high))
        assert pair.kld.clusters == 8


def test_over_all_prompts_it_is_scipys_paired_t_test_of_prompt_means() -> None:
    from scipy.stats import ttest_rel

    first, second = _klds(7, offset=0.001)
    made = _contrast(first, second)
    expected = ttest_rel(first.mean(axis=1), second.mean(axis=1))
    assert made.kld is not None
    assert (made.kld.p_value, made.kld.mean) == pytest.approx((expected.pvalue, (first - second).mean()))
    assert made.distances is not None
    assert [each.kld_mean for each in made.distances] == pytest.approx([first.mean(), second.mean()])


def test_p_values_are_corrected_by_holm_for_the_prompts_that_were_tested() -> None:
    first, second = _klds(4, offset=0.0003)
    sides = [[_output(index, values) for index, values in enumerate(side)] for side in (first, second)]
    sides[0].append(_output(4))  # not scored, so not counted
    sides[1].append(_output(4))
    pairs = contrast(*sides, ABOUT).pairs
    assert (pairs[4].verdict, pairs[4].p_adjusted) == ("not tested", None)
    tested = sorted((pair.kld.p_value, pair.p_adjusted or 0.0) for pair in pairs if pair.kld)
    expected = np.minimum(np.maximum.accumulate([p * (4 - rank) for rank, (p, _) in enumerate(tested)]), 1)
    assert [adjusted for _, adjusted in tested] == pytest.approx(expected.tolist())


def test_the_minimum_detectable_effect_is_at_the_corrected_level() -> None:
    """A true difference of that size would be found with 80 % power by the strictest of the tests."""
    from scipy.stats import nct, sem, t

    first, second = _klds(5)
    pairs = _contrast(first, second).pairs
    for index, pair in enumerate(pairs):
        assert pair.kld is not None
        error = sem((first[index] - second[index]).reshape(8, -1).mean(axis=1))
        bound = t.isf(ALPHA / 5 / 2, 7)
        assert nct.sf(bound, 7, pair.kld.mde / error) + nct.cdf(-bound, 7, pair.kld.mde / error) == pytest.approx(0.8, abs=1e-6)


def test_correlated_neighbours_are_not_taken_for_so_many_observations() -> None:
    """No true difference, and each position's differs little from the last one's: some 5 % of the prompts have p < 0.05."""
    rng = np.random.default_rng(3)
    walks = rng.standard_normal((400, 128))
    for position in range(1, 128):
        walks[:, position] = 0.5 * walks[:, position - 1] + math.sqrt(0.75) * walks[:, position]
    pairs = _contrast(walks, np.zeros((400, 128))).pairs
    found = sum(pair.kld.p_value < 0.05 for pair in pairs if pair.kld)
    assert 0.02 < found / 400 < 0.09


def test_what_is_planted_in_one_prompt_is_found_there_and_only_there() -> None:
    first, second = _klds(6)
    first[2] += 0.01
    made = _contrast(first, second)
    assert [pair.verdict for pair in made.pairs] == ["no difference"] * 2 + ["first further"] + ["no difference"] * 3
    assert "though a/4 is significantly further on prompt 3;" in conclusion(made)


@pytest.mark.parametrize("positions", [1, 2 * BLOCK_POSITIONS - 1])
def test_too_few_positions_are_not_tested_within_a_prompt(positions: int) -> None:
    made = _contrast(*_klds(3, offset=0.05, positions=positions))
    assert {pair.verdict for pair in made.pairs} == {"not tested"}
    assert made.verdict == "first further"
    assert "significantly so on 0" in conclusion(made)


def test_a_kld_that_is_no_number_is_left_out() -> None:
    first, second = _klds(3, offset=0.01)
    first[1][5] = math.nan
    made = _contrast(first, second)
    assert made.pairs[1].verdict == "not tested"
    assert [pair.first.index for pair in made.scored] == [0, 2]
    assert made.distances is not None
    assert made.distances[0].kld_mean == pytest.approx(first[[0, 2]].mean())


# --- the sentence


def test_the_first_is_further() -> None:
    sentence = conclusion(_contrast(*_klds(10, offset=0.01)))
    assert sentence.startswith("On some/model (prompts ten) a/4 is further from torch/fp32 than b/8, on 10 of 10 prompts and ")
    assert "significantly so on 10 (each tested, Holm-corrected): mean KLD 0.0" in sentence
    assert sentence.endswith("their answers are the same on all 10 prompts")


def test_the_second_is_further_with_the_figures_in_that_order() -> None:
    first, second = _klds(10, offset=0.01)
    ahead, behind = _contrast(first, second), _contrast(second, first)
    assert (ahead.verdict, behind.verdict) == ("first further", "second further")
    swapped = conclusion(behind).replace("a/4", "x").replace("b/8", "a/4").replace("x", "b/8")
    assert swapped == conclusion(ahead).replace("x", "b/8")


def test_no_difference_is_said_with_what_would_have_been_found() -> None:
    made = _contrast(*_klds(10))
    assert made.verdict == "no difference"
    assert made.kld is not None
    said = "a/4 and b/8 do not differ significantly in their distance from torch/fp32 over 10 prompts: mean KLD"
    assert said in conclusion(made)
    assert "would go unnoticed more than one time in five" in conclusion(made)
    assert f"a difference below {made.kld.mde:.1e} would" in conclusion(made)


def test_equal_figures_are_equal() -> None:
    values, _ = _klds(2)
    made = _contrast(values, values)
    assert {made.verdict, *(pair.verdict for pair in made.pairs)} == {"equal"}
    assert "a/4 and b/8 are equally far from torch/fp32 at every scored position: mean KLD 0.0" in conclusion(made)


def test_one_prompt_is_too_few_for_all_prompts_but_may_differ_itself() -> None:
    made = _contrast(*_klds(1, offset=0.02))
    assert made.kld is None
    said = "one prompt is too few to tell whether a/4 and b/8 differ in their distance from torch/fp32: mean KLD"
    assert said in conclusion(made)
    assert ", though a/4 is significantly further on prompt 1; their answers are the same on the one prompt" in conclusion(made)


def test_without_a_score_it_says_why() -> None:
    made = contrast([_output(0, tokens=(1, 9))], [_output(0)], ABOUT)
    assert (made.kld, made.distances, made.verdict) == (None, None, "not tested")
    assert conclusion(made) == (
        "On some/model (prompts ten) the distance of a/4 and b/8 from torch/fp32 was not measured: a/4: why not; their answers "
        "differ on 1 of 1 prompt, after a median of 1 equal tokens, where a/4 had left torch/fp32's answer on 1 and b/8 on 0"
    )


def test_an_instrument_check_is_called_so() -> None:
    made = contrast([_output(0)], [_output(0)], replace(ABOUT, instrument_check=True))
    assert conclusion(made).endswith("; some/model is an instrument check, so this holds for some/model only")


# --- what cannot be compared


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt_tokens": (9, 9)}, "prompt 1, or the reference's answer to it, differs"),
        ({"reference_text": "another"}, "prompt 1, or the reference's answer to it, differs"),
        ({"index": 1}, "they answered different prompts, 1 and 1"),
        ({"kld": (0.1, 0.2)}, "on prompt 1 they were scored at 2 and 3 positions"),
    ],
)
def test_other_prompts_or_positions_are_incomparable(change: dict[str, object], said: str) -> None:
    one, other = _output(0, [0.1] * 3), _output(0, [0.1] * 3)
    with pytest.raises(IncomparableError, match=r"^a/4 and b/8 of run r1 are incomparable: ") as caught:
        contrast([replace(one, **change)], [other], ABOUT)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert caught.value.exit_code == 4
