"""The rules by which the cells of claimed tables are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from quantbench.advice.words import Scale, words
from quantbench.claims import marks as m
from quantbench.claims import sizes
from quantbench.claims.claimed import ClaimRow, ClaimTable
from quantbench.claims.evidence import Evidence, no_gpu
from quantbench.claims.findings import FINDINGS, absent
from quantbench.claims.marks import Figure, Judgement
from quantbench.core.units import GB, times
from quantbench.tables.lines import Line

_BILLION = 1e9
INSTRUMENT_CHECK = "an instrument check"
_RANKS = ("No", "Limited", "Yes")
"""Degrees of support, from none to full."""


@dataclass(frozen=True, slots=True)
class ClaimedCell:
    """One cell of a claimed table."""

    table: ClaimTable
    row: ClaimRow
    key: str

    @property
    def text(self) -> str:
        """The cell, word for word."""
        return self.row.cells[self.key]

    @property
    def subject(self) -> str:
        """The title of its row."""
        return self.row.cells[self.table.first]

    @property
    def heading(self) -> str:
        """The title of its column."""
        return self.table.headings[self.key]

    @property
    def model(self) -> str:
        """The model whose sizes are planned; where the column names none, the table's first."""
        models = self.table.models
        return models.get(self.key) or next(iter(models.values()))


def _size(cell: ClaimedCell, evidence: Evidence) -> Judgement:
    """A size in GB: as planned or measured for the model in question, rounded like the claim."""
    claimed, variant = m.amount(cell.text), cell.row.variant
    weights = sizes.planned_weights(cell.model, [variant])[variant]
    line = evidence.of_model(variant, cell.model)
    measured = line.number("weight_bytes") if line else None
    planned = weights.weight_bytes
    found = planned if measured is None else measured
    if found is None:
        return Judgement(mark=m.NOT_YET, why=weights.note)
    mark, why = claimed.mark(found / GB), ""
    if mark == m.FAILS and any(claimed.is_rounded(m.amount(each.size).value) for each in cell.row.earlier):
        published = ", ".join(f"{each.size} in {each.date}" for each in cell.row.earlier)
        mark, why = m.RECIPE, f"{published}; now {weights.note}"
    elif mark == m.FAILS:
        why = _idealised(cell, claimed, found)
    return Judgement(mark=mark, why=why, planned=_bytes(planned), measured=_bytes(measured))


def _idealised(cell: ClaimedCell, claimed: m.Amount, found: float) -> str:
    """The claim's own arithmetic (values x bits) where it explains the claim, and what the real model has instead."""
    values = m.amount(cell.heading.split(maxsplit=1)[0]).value
    bits = sizes.nominal_bits(cell.row.variant)
    parameters = sizes.architecture_of(cell.model).parameters
    taken = sizes.bits_of(found, parameters)
    real = f"{cell.model}: {parameters / _BILLION:.2f}B" + (f" x {taken:.2f}" if round(taken, 2) != bits else "")
    holds = claimed.mark(sizes.ideal_bytes(values, bits)) == m.HOLDS
    return f"{values:g}B x {bits:g} bits; {real}" if holds else real


def _bits(cell: ClaimedCell, evidence: Evidence) -> Judgement:
    """Bits per value: those of the whole model over its parameters."""
    claimed, variant = m.amount(cell.text), cell.row.variant
    weights = sizes.planned_weights(cell.model, [variant])[variant]
    planned = sizes.bits_per_weight(cell.model, weights)
    line = evidence.of_model(variant, cell.model)
    measured = line.number("bits_per_weight") if line else None
    found = planned if measured is None else measured
    if found is None:
        return Judgement(mark=m.NOT_YET, why=weights.note)
    mark = claimed.mark(found)
    code = claimed.value == sizes.nominal_bits(variant)
    why = f"{claimed.value:g} bits a code, scales on top" if mark == m.FAILS and code else ""
    return Judgement(mark=mark, why=why, planned=_figure(planned), measured=_figure(measured))


def _word(name: Literal["quality", "quality_loss"], pick: Callable[[Scale, float], str]) -> CellCheck:
    """A word of a scale, compared with the word that a real model's figure gets."""

    def check(cell: ClaimedCell, evidence: Evidence) -> Judgement:
        scale: Scale = getattr(words(), name)
        for line in evidence.lines(cell.row.variant):
            value = line.number(scale.figure)
            if value is not None:
                return _of_model(line, cell.text, pick(scale, value), value)
        return Judgement(mark=m.NOT_YET)

    return check


def _inference_speed(cell: ClaimedCell, evidence: Evidence) -> Judgement:
    """The word for the speed over the reference's; planned is what memory bandwidth alone would allow."""
    scale = words().inference_speed
    variant, reference = cell.row.variant, cell.table.rows[0].variant
    weights = sizes.planned_weights(cell.model, [variant, reference])
    mine, theirs = weights[variant].weight_bytes, weights[reference].weight_bytes
    planned = Figure(theirs / mine, f"{scale.word(theirs / mine)} ({times(theirs / mine)}x)") if mine and theirs else None
    for line in evidence.lines(variant):
        if line.speed_ratio is not None:
            found = _of_model(line, cell.text, scale.word(line.speed_ratio), line.speed_ratio)
            return Judgement(mark=found.mark, why=found.why, planned=planned, measured=found.measured)
    return Judgement(mark=m.NOT_YET, planned=planned)


def _of_model(line: Line, claimed: str, found: str, value: float) -> Judgement:
    """A word found for a real model is compared with the claim; one found for an instrument check is only shown."""
    measured = Figure(value, f"{found}, {line.group.model}")
    if line.group.instrument_check:
        return Judgement(mark=m.NOT_YET, why=INSTRUMENT_CHECK, measured=measured)
    return Judgement(mark=m.HOLDS if found == claimed else m.FAILS, measured=measured)


def _conversion(cell: ClaimedCell, evidence: Evidence) -> Judgement:
    """When a method quantizes."""
    line, why = _tried(cell, evidence)
    if line is None:
        return Judgement(mark=m.NOT_YET, why=why)
    word = FINDINGS[cell.key](line).word
    return Judgement(mark=m.HOLDS if word == cell.text else m.FAILS, measured=Figure(word, word))


def capability(claimed: str, key: str, line: Line) -> Judgement:
    """Something that works or not: outdated where more works than was claimed, failing where less does."""
    finding = FINDINGS[key](line)
    if finding.word not in _RANKS:
        return Judgement(mark=m.NOT_YET, why=finding.reason)
    steps = _RANKS.index(finding.word) - _RANKS.index(claimed.split(maxsplit=1)[0])
    mark = m.OUTDATED if steps > 0 else m.FAILS if steps < 0 else m.HOLDS
    return Judgement(mark=mark, why=finding.reason, measured=Figure(finding.word, f"{finding.word}, {line.variant}"))


def _capability(cell: ClaimedCell, evidence: Evidence) -> Judgement:
    line, why = _tried(cell, evidence)
    return capability(cell.text, cell.key, line) if line else Judgement(mark=m.NOT_YET, why=why)


def _method_speed(cell: ClaimedCell, evidence: Evidence) -> Judgement:
    """A word for the speed on a device."""
    word, _, where = cell.text.rstrip(")").partition(" (")
    line, why = _tried(cell, evidence)
    if where == "GPU" and not (line and line.group.fact("device").startswith("cuda")):
        return Judgement(mark=m.NOT_HERE if no_gpu() else m.NOT_YET, why=no_gpu() or "not measured on a GPU")
    if line is None or line.speed_ratio is None:
        return Judgement(mark=m.NOT_YET, why=why)
    return _of_model(line, word, words().inference_speed.word(line.speed_ratio), line.speed_ratio)


def _tried(cell: ClaimedCell, evidence: Evidence) -> tuple[Line | None, str]:
    """The method's row where it was measured, else None and the reason."""
    line = evidence.of_method(cell.row.variant)
    if line is None:
        return None, ""
    missing = absent(line)
    return (None, f"{line.variant}: {line.status}") if missing else (line, "")


def _bytes(count: float | None) -> Figure | None:
    return None if count is None else Figure(count, sizes.gigabytes(count))


def _figure(value: float | None) -> Figure | None:
    return None if value is None else Figure(value, f"{value:.2f}")


CellCheck = Callable[[ClaimedCell, Evidence], Judgement]

CELL_CHECKS: Mapping[str, CellCheck] = {
    "size": _size,
    "bits": _bits,
    "quality": _word("quality", Scale.word),
    "quality_loss": _word("quality_loss", Scale.word),
    "recommended": _word("quality", lambda scale, value: scale.anchor(value).recommended),
    "inference_speed": _inference_speed,
    "conversion": _conversion,
    "capability": _capability,
    "method_speed": _method_speed,
}
"""By the rule that ``claims.toml`` names for a column."""
