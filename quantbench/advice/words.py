"""The rule that turns a measured figure into a word.

The words are anchored on published figures of 7-8B models (``anchors.toml`` holds each with its source and date), so that the
published model gets exactly the word that tutorials give it. The edge between two words is the geometric mean of
their anchors. A figure of a small model gets its word by the same edges; the canary is an instrument check, and its words say
whether the instrument works, not how a real model fares.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where published figures come from."""

    title: str
    url: str
    date: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WordAnchor:
    """A word with the published figure it stands for, in the unit of the scale's column."""

    word: str
    value: float
    published: str
    source: str
    recommended: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Words by rising figure; ``figure`` names the column that they describe."""

    figure: str
    anchors: tuple[WordAnchor, ...]

    @property
    def edges(self) -> tuple[float, ...]:
        """Where one word ends and the next begins: the geometric means of neighbouring anchors."""
        return tuple(math.sqrt(a.value * b.value) for a, b in zip(self.anchors, self.anchors[1:], strict=False))

    def anchor(self, figure: float) -> WordAnchor:
        """The anchor whose band holds ``figure``; an edge belongs to the band below it."""
        return self.anchors[sum(figure > edge for edge in self.edges)]

    def word(self, figure: float) -> str:
        """The word for ``figure``."""
        return self.anchor(figure).word

    def upper_edge(self, word: str) -> float:
        """The largest figure that still gets ``word``; infinite for the last word."""
        position = [anchor.word for anchor in self.anchors].index(word)
        return self.edges[position] if position < len(self.edges) else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """All scales: ``quality`` of a GGUF level, ``quality_loss`` of a precision, ``inference_speed`` over the reference."""

    quality: Scale
    quality_loss: Scale
    inference_speed: Scale
    sources: Mapping[str, Source]


@cache
def words() -> Words:
    """The scales with their shipped anchors."""
    body = tomllib.loads((files("quantbench.advice") / "anchors.toml").read_text(encoding="utf-8"))
    scales = {
        name: Scale(figure=table["figure"], anchors=tuple(WordAnchor(**each) for each in table["anchors"]))
        for name, table in body.items()
        if name != "sources"
    }
    return Words(**scales, sources={name: Source(**each) for name, each in body["sources"].items()})
