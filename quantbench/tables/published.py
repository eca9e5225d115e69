"""Quality that others published, for what nobody has measured here yet: ``published.toml``, each figure with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedQuality:
    """The mean KLD in nats that was published of a variant (``method/precision``) of some model."""

    variant: str
    kld_mean: float
    model: str
    source: str
    date: str


@cache
def published() -> Mapping[str, PublishedQuality]:
    """All published figures by variant."""
    body = tomllib.loads((files("quantbench.tables") / "published.toml").read_text(encoding="utf-8"))
    return {each["variant"]: PublishedQuality(**each) for each in body["quality"]}
