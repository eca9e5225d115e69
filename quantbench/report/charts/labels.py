"""Where labels go beside their points so that they touch neither a point nor each other. Arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TextAnchor = tuple[float, float]
"""A place in a chart as shares of its width, from the left, and of its height, from the top."""

_CHARACTER = 6.8
"""Pixels per character of an 11 px label: an upper bound of the average."""

# Pixels: half the height of a label, the radius of a point, and from a point to its label.
_HALF_LINE = 7
_RADIUS = 5
_GAP = 9


@dataclass(frozen=True, slots=True)
class LabelPlace:
    """Where a label goes: its offset from the point in pixels, and which end of it is placed there."""

    dx: int
    dy: int
    align: str


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def touches(self, other: _Box) -> bool:
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom


_PLACES = {
    **dict.fromkeys((LabelPlace(_GAP, 0, "left"), LabelPlace(-_GAP, 0, "right")), _RADIUS),
    **dict.fromkeys((LabelPlace(0, -_GAP - 4, "center"), LabelPlace(0, _GAP + 4, "center")), 10),
    **dict.fromkeys((LabelPlace(_GAP, -_GAP, "left"), LabelPlace(_GAP, _GAP, "left"), LabelPlace(-_GAP, _GAP, "right")), 13),
    LabelPlace(-_GAP, -_GAP, "right"): 13,
}
"""Where a label may go, best first, with its least distance in pixels from other points: more than from its own."""


def place(
    anchors: Sequence[TextAnchor], labels: Mapping[int, str], *, width: float, height: float, settled: Mapping[int, LabelPlace]
) -> dict[int, LabelPlace]:
    """Places for the ``labels`` of points, by their number in ``anchors``, the first before the later ones.

    A label that fits nowhere is left out; one that is ``settled`` keeps its place. What fits one width fits every larger one,
    as labels keep their size while the points move apart.
    """
    points = [(x * width, y * height) for x, y in anchors]
    taken: list[_Box] = []
    found: dict[int, LabelPlace] = {}
    for index, text in labels.items():
        for candidate, apart in {settled[index]: 0}.items() if index in settled else _PLACES.items():
            box = _box(candidate, *points[index], len(text))
            others = [_dot(*point, apart) for number, point in enumerate(points) if number != index]
            inside = box.left >= 0 and box.right <= width and box.top >= 0 and box.bottom <= height
            if index in settled or (inside and not any(box.touches(other) for other in (*taken, *others))):
                found[index] = candidate
                taken.append(box)
                break
    return found


def is_free(
    anchors: Sequence[TextAnchor], label: tuple[LabelPlace, TextAnchor], length: int, *, width: float, height: float
) -> bool:
    """Whether a label of ``length`` characters at its place touches none of the points."""
    at, (x, y) = label
    box = _box(at, x * width, y * height, length)
    return not any(box.touches(_dot(each[0] * width, each[1] * height, _RADIUS)) for each in anchors)


def _box(at: LabelPlace, x: float, y: float, characters: int) -> _Box:
    """The box of a label and of the gap to its point: else another point in the gap could end up under the label."""
    length = characters * _CHARACTER
    left, right = {
        "left": (x, x + at.dx + length), "right": (x + at.dx - length, x), "center": (x - length / 2, x + length / 2),
    }[at.align]  # fmt: skip
    return _Box(left, y + at.dy - _HALF_LINE, right, y + at.dy + _HALF_LINE)


def _dot(x: float, y: float, radius: float) -> _Box:
    return _Box(x - radius, y - radius, x + radius, y + radius)
