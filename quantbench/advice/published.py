"""Published quality of variants not measured here yet: ``published.toml``, each figure with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedQuality:
    """The mean KLD in nats that was published of a variant (``method/precision``) of ``model``.

    ``published`` is the source's own name for the variant, ``note`` what readers must know about all figures of that source.
    """

    variant: str
    kld_mean: float
    published: str
    model: str
    source: str
    url: str
    date: str
    note: str


@cache
def published() -> Mapping[str, PublishedQuality]:
    """All published figures by variant; a variant without one is missing."""
    body = tomllib.loads((files("quantbench.advice") / "published.toml").read_text(encoding="utf-8"))
    return {each["variant"]: _quality(each, body["sources"][each["source"]]) for each in body["quality"]}


def _quality(figure: Mapping[str, str | float], source: Mapping[str, str]) -> PublishedQuality:
    return PublishedQuality(
        variant=str(figure["variant"]), kld_mean=float(figure["kld_mean"]), published=str(figure["published"]),
        model=source["model"], source=source["title"], url=source["url"], date=source["date"], note=source["note"],
    )  # fmt: skip
