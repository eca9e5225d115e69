"""Which variant fits, before anything is measured: planned bytes beside published quality.

The rule follows the one for measured rows: of the variants whose peak is within the memory and whose published KLD keeps the
limit, the smallest, since a decode step reads every weight once and smaller is faster where memory bandwidth limits.
A variant without a published KLD is named but never picked.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from quantbench.advice.words import words
from quantbench.core.units import format_bytes, format_limit, short
from quantbench.planning.planner import Planned, Workload

DEFAULT_WORD = "Good"
"""The default limit of the published KLD is the upper edge of this word of the GGUF scale."""
_NAMED = 6
"""How many variants a sentence names; the rest are counted."""


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
    """All figures of ``published.toml``, each with its source, by variant; a variant without one is missing."""
    body = tomllib.loads((files("quantbench.advice") / "published.toml").read_text(encoding="utf-8"))
    return {each["variant"]: _quality(each, body["sources"][each["source"]]) for each in body["quality"]}


def _quality(figure: Mapping[str, str | float], source: Mapping[str, str]) -> PublishedQuality:
    return PublishedQuality(
        variant=str(figure["variant"]), kld_mean=float(figure["kld_mean"]), published=str(figure["published"]),
        model=source["model"], source=source["title"], url=source["url"], date=source["date"], note=source["note"],
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """What to try first. ``pick`` is None when nothing keeps the limits; ``best`` has the lowest published KLD that fits.

    ``unpublished`` fit, but have no published KLD; ``unplanned`` have one, but no planned bytes (their notes say why);
    ``nearest`` misses the memory by the least. ``model_note`` comes from the plan. Nothing here was measured.
    """

    model: str
    memory_bytes: int
    max_kld: float
    workload: Workload
    pick: Planned | None
    best: Planned | None
    unpublished: tuple[Planned, ...]
    unplanned: tuple[Planned, ...]
    nearest: Planned | None
    model_note: str

    @property
    def sentence(self) -> str:
        """The answer in one sentence, marked as not measured."""
        start = f"Not measured: under {format_limit(self.memory_bytes)}"
        size = f"{self.workload.batch} x {self.workload.context}" if self.workload.batch > 1 else str(self.workload.context)
        if self.unpublished and not (self.pick or self.best or self.nearest):
            names = [each.variant for each in self.unpublished]
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            listed = f"{', '.join(names[:_NAMED])}{more} of {self.model}"
            parts = [f"{start} nobody published a KLD of what fits: {listed} at {size} tokens"]
            return "; ".join(filter(None, [*parts, self._unplanned(), self.model_note]))
        if self.pick:
            parts = [f"{start} try {self.pick.variant} of {self.model} at {size} tokens first: {_figures(self.pick)}"]
        else:
            limit = f"a published KLD up to {short(self.max_kld)}"
            parts = [f"{start} no variant of {self.model} with {limit} fits at {size} tokens"]
        if self.nearest:
            parts.append(f"nearest is {self.nearest.variant}: {_figures(self.nearest)}")
        if self.best and self.best is not self.pick:
            parts.append(f"the lowest published KLD that fits is that of {self.best.variant}: {_figures(self.best)}")
        if self.unpublished:
            methods = ", ".join(dict.fromkeys(each.method for each in self.unpublished))
            parts.append(f"nobody published a KLD of {len(self.unpublished)} more that fit ({methods})")
        return "; ".join(filter(None, [*parts, self._unplanned(), self.model_note]))

    def _unplanned(self) -> str:
        """Where nothing is picked: how many variants with a published KLD could not be planned, and why the first could not."""
        if self.pick or not self.unplanned:
            return ""
        variants = f"{len(self.unplanned)} with a published KLD" if len(self.unplanned) > 1 else self.unplanned[0].variant
        return f"{variants} could not be planned: {self.unplanned[0].note}"


def suggest(planned: Sequence[Planned], *, memory_bytes: int, workload: Workload, max_kld: float | None = None) -> Suggestion:
    """What to try first of the variants planned for one model; see the module for the rule.

    ``max_kld`` in nats; None means the upper edge of "Good".
    """
    limit = words().quality.upper_edge(DEFAULT_WORD) if max_kld is None else max_kld
    known = published()
    sized = [each for each in planned if each.peak_bytes is not None]
    fitting = [each for each in sized if each.fits_within(memory_bytes)]
    judged = [(each, known[each.variant]) for each in fitting if each.variant in known]
    kept = [each for each, quality in judged if quality.kld_mean <= limit]
    within = [each for each in sized if each.variant in known and known[each.variant].kld_mean <= limit]
    return Suggestion(
        model=planned[0].model if planned else "",
        memory_bytes=memory_bytes,
        max_kld=limit,
        workload=workload,
        pick=min(kept, key=_size, default=None),
        best=min(judged, key=lambda pair: (pair[1].kld_mean, _size(pair[0])), default=(None, None))[0],
        unpublished=tuple(each for each in fitting if each.variant not in known),
        unplanned=tuple(each for each in planned if each.peak_bytes is None and each.variant in known),
        nearest=None if kept else min(within, key=_size, default=None),
        model_note=planned[0].model_note if planned else "",
    )


def _size(planned: Planned) -> int:
    return planned.peak_bytes or 0


def _figures(planned: Planned) -> str:
    bits = f" ({planned.bits_per_weight:.2f} bits/weight)" if planned.bits_per_weight else ""
    quality = published().get(planned.variant)
    kld = f", published KLD {_quoted(quality)}" if quality else ""
    about = "" if planned.is_exact else "about "
    return f"{about}{format_bytes(planned.peak_bytes or 0)} = {planned.arithmetic}{bits}{kld}"


def _quoted(quality: PublishedQuality) -> str:
    return f"{short(quality.kld_mean)} nats of {quality.model} ({quality.source}, {quality.date})"
