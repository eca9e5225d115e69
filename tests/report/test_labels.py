"""Labels of points: none touches another or a point, at the width asked for and at every larger one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.report.charts.labels import LabelPlace, place

CHARACTER, HALF_LINE, RADIUS = 6.8, 7, 5

shares = st.floats(0.02, 0.98)
points = st.lists(st.tuples(shares, shares), min_size=1, max_size=14, unique=True)


def _boxes(
    anchors: list[tuple[float, float]], found: dict[int, LabelPlace], names: dict[int, str], width: float, height: float
) -> dict[int, tuple[float, float, float, float]]:
    boxes = {}
    for index, at in found.items():
        x, y, long = anchors[index][0] * width + at.dx, anchors[index][1] * height + at.dy, len(names[index]) * CHARACTER
        left = {"left": x, "right": x - long, "center": x - long / 2}[at.align]
        boxes[index] = (left, y - HALF_LINE, left + long, y + HALF_LINE)
    return boxes


def _touch(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] - 1e-6 and other[0] < one[2] - 1e-6 and one[1] < other[3] - 1e-6 and other[1] < one[3] - 1e-6


@given(anchors=points, wider=st.floats(1, 5))
def test_labels_stay_apart_at_every_larger_width(anchors: list[tuple[float, float]], wider: float) -> None:
    names = {index: "x" * (3 + index) for index in range(len(anchors))}
    found = place(anchors, names, width=270, height=400, settled={})
    for width in (270, 270 * wider):
        boxes = _boxes(anchors, found, names, width, 400)
        for index, box in boxes.items():
            assert box[0] >= -1e-6
            assert box[2] <= width + 1e-6
            assert not any(_touch(box, other) for number, other in boxes.items() if number != index)
            dots = [(x * width - RADIUS, y * 400 - RADIUS, x * width + RADIUS, y * 400 + RADIUS) for x, y in anchors]
            assert not any(_touch(box, dot) for number, dot in enumerate(dots) if number != index)


def test_the_first_label_wins_where_one_has_room() -> None:
    anchors = [(0.5, 0.5), (0.52, 0.5)]
    texts = {0: "a" * 30, 1: "b" * 30}
    assert set(place(anchors, texts, width=270, height=16, settled={})) == set()
    assert set(place([(0.3, 0.5), (0.7, 0.5)], texts, width=440, height=60, settled={})) == {0, 1}
    assert set(place([(0.5, 0.5)] * 2, texts, width=440, height=16, settled={})) == set()


@pytest.mark.parametrize(("x", "align"), [(0.1, "left"), (0.9, "right")])
def test_a_label_turns_away_from_the_edge(x: float, align: str) -> None:
    assert place([(x, 0.5)], {0: "gguf/q4_k_m"}, width=270, height=400, settled={})[0].align == align


def test_a_label_stands_nearer_to_its_own_point_than_to_another() -> None:
    column = [(0.5, 0.5), (0.5, 0.53), (0.5, 0.56)]
    found = place(column, {1: "x" * 18}, width=200, height=400, settled={})
    assert found == {}
    assert place(column[:1], {0: "x" * 18}, width=200, height=400, settled={}) == {0: LabelPlace(0, -13, "center")}


def test_a_settled_label_keeps_its_place_and_the_others_make_way() -> None:
    anchors = [(0.4, 0.5), (0.45, 0.5)]
    settled = {0: LabelPlace(9, 0, "left")}
    found = place(anchors, {0: "first", 1: "second"}, width=900, height=400, settled=settled)
    assert found[0] == settled[0]
    first, second = _boxes(anchors, found, {0: "first", 1: "second"}, 900, 400).values()
    assert not _touch(first, second)
