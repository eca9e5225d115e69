"""The conclusion of a contrast in one sentence, for every outcome."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quantbench.core.units import significant

if TYPE_CHECKING:
    from quantbench.core.statistics import Difference
    from quantbench.judge.contrast import Contrast, Direction, Distance


def conclusion(contrast: Contrast) -> str:
    """Which of the two is further from the reference, by how much and on which prompts, and where their answers diverge."""
    about = contrast.about
    parts = [f"On {about.model} (prompts {about.prompts}) {_distance(contrast)}", _answers(contrast)]
    if about.instrument_check:
        parts.append(f"{about.model} is an instrument check, so this holds for {about.model} only")
    return "; ".join(parts)


def _distance(contrast: Contrast) -> str:
    about, kld, distances = contrast.about, contrast.kld, contrast.distances
    both = f"{about.first} and {about.second}"
    if distances is None:
        return f"the distance of {both} from {about.reference} was not measured: {about.unscored}"
    if contrast.verdict == "equal":
        kld_mean = significant(distances[0].kld_mean)
        return f"{both} are equally far from {about.reference} at every scored position: mean KLD {kld_mean} nats"
    if kld is None:
        return (
            f"one prompt is too few to tell whether {both} differ in their distance from {about.reference}: "
            f"{_means(*distances)}{_exceptions(contrast)}"
        )
    if contrast.verdict == "no difference":
        return (
            f"{both} do not differ significantly in their distance from {about.reference} over {_prompts(contrast)}: "
            f"{_means(*distances)}, {_figures(kld)}, and a difference below {significant(kld.mde, 2)} would go unnoticed more "
            f"than one time in five{_exceptions(contrast)}"
        )
    return _further(contrast, kld, distances)


def _further(contrast: Contrast, kld: Difference, distances: tuple[Distance, Distance]) -> str:
    """One is further over all prompts; its figures come first."""
    further, closer = contrast.about.first, contrast.about.second
    sign = 1
    if contrast.verdict == "second further":
        further, closer, sign = closer, further, -1
        distances = distances[1], distances[0]
        kld = replace(kld, mean=-kld.mean, low=-kld.high, high=-kld.low)
    higher = sum(sign * pair.kld_difference > 0 for pair in contrast.scored)
    surely = sum(pair.verdict == contrast.verdict for pair in contrast.scored)
    return (
        f"{further} is further from {contrast.about.reference} than {closer}, on {higher} of {_prompts(contrast)} and "
        f"significantly so on {surely} (each tested, Holm-corrected): {_means(*distances)}, {_figures(kld)}"
        f"{_exceptions(contrast)}"
    )


def _exceptions(contrast: Contrast) -> str:
    """Prompts whose significant verdict differs from that over all prompts."""
    names: dict[Direction, str] = {"first further": contrast.about.first, "second further": contrast.about.second}
    found = []
    for verdict, name in names.items():
        numbers = [str(pair.first.index + 1) for pair in contrast.pairs if pair.verdict == verdict != contrast.verdict]
        if numbers:
            found.append(f"{name} is significantly further on prompt{'s' * (len(numbers) > 1)} {', '.join(numbers)}")
    return f", though {' and '.join(found)}" if found else ""


def _answers(contrast: Contrast) -> str:
    count = len(contrast.pairs)
    differing = [pair for pair in contrast.pairs if not pair.same]
    if not differing:
        return f"their answers are the same on {'the one prompt' if count == 1 else f'all {count} prompts'}"
    text = f"their answers differ on {len(differing)} of {count} prompt{'s' * (count != 1)}"
    if contrast.median_parting is None:
        return text
    about = contrast.about
    first = sum(pair.left(pair.first) for pair in differing)
    second = sum(pair.left(pair.second) for pair in differing)
    return (
        f"{text}, after a median of {contrast.median_parting:g} equal tokens, where {about.first} had left "
        f"{about.reference}'s answer on {first} and {about.second} on {second}"
    )


def _means(first: Distance, second: Distance) -> str:
    return (
        f"mean KLD {significant(first.kld_mean)} against {significant(second.kld_mean)} nats, "
        f"top-1 agreement {first.top1_agreement:.1%} against {second.top1_agreement:.1%}"
    )


def _figures(kld: Difference) -> str:
    mean, low, high = map(significant, (kld.mean, kld.low, kld.high))
    return f"KLD difference {mean} (95 % interval {low} to {high}, p = {significant(kld.p_value, 2)})"


def _prompts(contrast: Contrast) -> str:
    """How many prompts were scored."""
    return f"{len(contrast.scored)} prompt{'s' * (len(contrast.scored) != 1)}"
