"""The words: published models get exactly the tutorial's words, and each measured figure exactly one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.advice.words import Scale, words

SCALES = [words().quality, words().quality_loss, words().inference_speed]


@pytest.mark.parametrize(
    ("kld", "word", "recommended"),
    [  # llama.cpp's scoreboard of Llama-3-8B, mean KLD
        (0.445132, "Low", "Not recommended"),
        (0.101913, "Fair", "Limited"),
        (0.031273, "Good", "General use"),
        (0.010762, "Very good", "High quality"),
        (0.005452, "Excellent", "High quality"),
        (0.001355, "Near lossless", "When memory allows"),
    ],
)
def test_published_levels_get_the_tutorials_words(kld: float, word: str, recommended: str) -> None:
    anchor = words().quality.anchor(kld)

    assert (anchor.word, anchor.recommended) == (word, recommended)


@pytest.mark.parametrize(
    ("kld", "word"), [(0.0, "None"), (0.00002515, "Nearly none"), (0.001355, "Minimal"), (0.07194, "Slight")]
)
def test_published_precisions_get_the_tutorials_words(kld: float, word: str) -> None:
    assert words().quality_loss.word(kld) == word


@pytest.mark.parametrize(("bits", "word"), [(32, "Slow"), (16, "Fast"), (8, "Very fast"), (4, "Fastest")])
def test_bandwidth_alone_gives_the_tutorials_speeds(bits: int, word: str) -> None:
    assert words().inference_speed.word(32 / bits) == word


def test_worse_than_four_bits_is_not_called_slight() -> None:
    assert words().quality_loss.word(0.4) == "Marked"


@pytest.mark.parametrize("scale", SCALES)
def test_edges_lie_between_neighbouring_anchors_at_the_geometric_mean(scale: Scale) -> None:
    for below, edge, above in zip(scale.anchors, scale.edges, scale.anchors[1:], strict=False):
        assert below.value < edge < above.value
        assert edge / below.value == pytest.approx(above.value / edge)


@pytest.mark.parametrize("scale", SCALES)
def test_an_edge_still_belongs_to_the_band_below(scale: Scale) -> None:
    for anchor in scale.anchors[:-1]:
        edge = scale.upper_edge(anchor.word)

        assert scale.word(edge) == anchor.word
        assert scale.word(math.nextafter(edge, math.inf)) != anchor.word
    assert scale.upper_edge(scale.anchors[-1].word) == math.inf


@given(st.floats(-1, 10), st.floats(-1, 10))
def test_a_larger_divergence_never_gets_a_better_word(one: float, other: float) -> None:
    scale = words().quality
    ranks = [scale.anchors.index(scale.anchor(each)) for each in sorted([one, other])]

    assert ranks == sorted(ranks)


@pytest.mark.parametrize("scale", SCALES)
def test_every_anchor_names_a_shipped_source(scale: Scale) -> None:
    assert {anchor.source for anchor in scale.anchors} <= set(words().sources)
    assert all(source.title and source.note for source in words().sources.values())
