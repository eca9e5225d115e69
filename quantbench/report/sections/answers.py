"""The reference's answers and each variant's side by side, with differences marked word by word. Model output is untrusted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import TYPE_CHECKING

from quantbench.core.text import visible
from quantbench.core.units import short
from quantbench.results.rows import Group, Row, rows_of

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

MOST_CHARACTERS = 1000
"""Only the beginning of a longer text is shown."""

_TEXTS = ["prompt", "reference_text", "variant_text"]
_FIGURES = ["exact_match", "first_divergence", "token_match", "chrf", "kld_mean"]
_PIECE = re.compile(r"\w+|[^\w\s]|\n|[^\S\n]+")
"""A word, a punctuation mark, a newline, or other white space."""

_MARKUP_BYTES = 600
"""What a pair of answers takes on the page beyond its texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownAnswer:
    """One prompt: markup of both answers with their differences marked, or of one where they are equal, and its figures."""

    number: int
    prompt: Markup
    same: bool
    reference: Markup
    variant: Markup
    figures: str

    @property
    def size(self) -> int:
        """About how many bytes it takes on the page."""
        shown = self.variant if self.same else self.reference + self.variant
        return len((self.prompt + shown).encode()) + _MARKUP_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers of one variant; ``opened`` shows them unfolded."""

    name: str
    figures: str
    answers: tuple[ShownAnswer, ...]
    opened: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """The answers of a group's variants to its first prompts; ``total`` counts all prompts, ``cut``: texts were cut."""

    group: Group
    variants: tuple[Answers, ...]
    numbers: tuple[int, ...]
    total: int
    cut: bool


_Said = Sequence[tuple[Row, Mapping[int, Row]]]
"""Rows with what they answered, by the prompt's index."""


def side_by_side(group: Group, outputs: pd.DataFrame, *, room: int, opened: str) -> SideBySide | None:
    """The answers that fit ``room`` bytes, prompt by prompt; None where none were kept.

    Of repeats only the first is shown. The reference has no list of its own, as its answers stand beside all others.
    """
    said = _said(group, outputs)
    indices = sorted({index for _, answers in said for index in answers})
    if not indices:
        return None
    shown = dict(_affordable(indices, said, room))
    variants = [
        Answers(
            name=row.label,
            figures=_summary(row, answers),
            answers=tuple(answer for by_name in shown.values() if (answer := by_name.get(row.label))),
            opened=row.label == opened,
        )
        for row, answers in said
    ]
    cut = any(len(output.text(key)) > MOST_CHARACTERS for _, answers in said for output in answers.values() for key in _TEXTS)
    numbers = tuple(index + 1 for index in shown)
    return SideBySide(group=group, variants=tuple(variants), numbers=numbers, total=len(indices), cut=cut)


def _said(group: Group, outputs: pd.DataFrame) -> _Said:
    rows = [row for row in group.rows if row.ok and (row.variant != group.reference or row.flag("control"))]
    of_group = outputs["scenario_id"].isin({row.text("scenario_id") for row in rows})
    kept: dict[str, dict[int, Row]] = {}
    needed = outputs.loc[of_group, ["scenario_id", "repeat", "index", *_TEXTS, *_FIGURES]].sort_values("repeat", kind="stable")
    for output in rows_of(needed):
        kept.setdefault(output.text("scenario_id"), {}).setdefault(int(output.number("index") or 0), output)
    return [(row, kept[row.text("scenario_id")]) for row in rows if row.text("scenario_id") in kept]


def _affordable(indices: Sequence[int], said: _Said, room: int) -> Iterator[tuple[int, dict[str, ShownAnswer]]]:
    """Answers by variant, prompt by prompt while those of all variants fit; at least those to the first prompt."""
    used = 0
    for index in indices:
        made = {row.label: _answer(answers[index], index + 1) for row, answers in said if index in answers}
        used += sum(answer.size for answer in made.values())
        if used > room and index != indices[0]:
            return
        yield index, made


def _answer(output: Row, number: int) -> ShownAnswer:
    reference, variant = (output.text(key)[:MOST_CHARACTERS] for key in ("reference_text", "variant_text"))
    same = output.text("reference_text") == output.text("variant_text")
    first, second = (_shown(reference), _shown(variant)) if same else differences(reference, variant)
    return ShownAnswer(
        number=number,
        prompt=_shown(output.text("prompt")[:MOST_CHARACTERS]),
        same=same,
        reference=first,
        variant=second,
        figures=_figures(output),
    )


@lru_cache(maxsize=4096)
def differences(reference: str, variant: str) -> tuple[Markup, Markup]:
    """Both texts as markup: words that only the first has in ``del``, words that only the second has in ``ins``."""
    from markupsafe import Markup

    first, second = _PIECE.findall(reference), _PIECE.findall(variant)
    left, right = Markup(), Markup()
    matcher = SequenceMatcher(str.isspace, first, second, autojunk=False)  # white space matches only beside matching words
    for kind, a, b, c, d in matcher.get_opcodes():
        gone, came = _shown("".join(first[a:b])), _shown("".join(second[c:d]))
        if kind == "equal":
            left, right = left + gone, right + came
        else:
            left += Markup("<del>{}</del>").format(gone) if gone else ""
            right += Markup("<ins>{}</ins>").format(came) if came else ""
    return left, right


def _shown(text: str) -> Markup:
    """``text`` escaped, with a visible sign at each newline."""
    from markupsafe import Markup, escape

    sign = Markup('<span class="nl" aria-hidden="true">↵</span>\n')
    return sign.join(escape(visible(line)) for line in text.split("\n"))


def _figures(output: Row) -> str:
    parts = []
    parting = output.number("first_divergence")
    if parting is not None:
        parts.append(f"token {int(parting) + 1} is the first to differ")
    for key, show in (("token_match", "{:.0%} of tokens equal".format), ("chrf", "chrF {:.1f}".format)):
        value = output.number(key)
        if value is not None and not output.flag("exact_match"):
            parts.append(show(value))
    kld = output.number("kld_mean")
    return ", ".join([*parts, *([f"KLD {short(kld)} nats"] if kld is not None else [])])


def _summary(row: Row, answers: Mapping[int, Row]) -> str:
    equal = sum(output.flag("exact_match") for output in answers.values())
    chrf = row.number("chrf")
    return f"{equal} of {len(answers)} answers equal" + (f", chrF {chrf:.1f}" if chrf is not None else "")
