"""The columns that tables share: each is a heading, and a function from a line to a cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from quantbench.advice.words import Scale, words
from quantbench.claims import sizes
from quantbench.claims.claimed import ClaimTable
from quantbench.core.units import significant, times
from quantbench.results.rows import Row
from quantbench.results.schema import column_of, timed_columns
from quantbench.tables.lines import Line
from quantbench.tables.table import Cell, Heading

BETWEEN_PROCESSES = "†"
BESIDE_OTHER_WORK = "~"
NEAR_EDGE = "≈"

_TIMED = ("decode_speed_ratio", "inference_speed")


@dataclass(frozen=True, slots=True)
class Field:
    """A column: its heading, and the function that makes its cell for a line."""

    heading: Heading
    cell: Callable[[Line], Cell]

    def marked(self, line: Line) -> Cell:
        """The cell, with a sign where its figure was timed beside other work."""
        cell = self.cell(line)
        if line.row is None or cell.value is None:
            return cell
        return replace(cell, mark=cell.mark + sign_of(line.row, self.heading.key))


def sign_of(row: Row, name: str) -> str:
    """The sign behind the row's figure in column ``name`` if it was timed beside other work; else empty."""
    return BESIDE_OTHER_WORK if row.flag("disturbed") and name in timed_keys() else ""


@cache
def timed_keys() -> frozenset[str]:
    """Keys of columns that rest on timed rounds: those of ``scenarios``, and those that tables derive from them."""
    return timed_columns().union(_TIMED)


def identity(title: str) -> list[Field]:
    """The common name of the line, and the variant measured."""
    return [
        Field(Heading(key="name", title=title), lambda line: Cell(line.label)),
        Field(Heading(key="variant", title="Variant"), lambda line: Cell(line.variant)),
    ]


def claimed(claims: ClaimTable, key: str) -> Field:
    """A column of the claimed table, under the text's own heading."""
    heading = Heading(key=f"claimed_{key}", title=claims.headings[key], source="claimed")
    return Field(heading, lambda line: Cell(line.claims.get(key)))


def planned(claims: ClaimTable, key: str, lines: Sequence[Line]) -> list[Field]:
    """The planned counterpart of a claimed size; CSV and JSON also get parameters x nominal bits, as tutorials count."""
    model, title = claims.models[key], claims.headings[key]
    weights = sizes.planned_weights(model, (line.variant for line in lines))
    heading = Heading(key=f"planned_{key}", title=title, unit="bytes", source="planned", numeric=True)
    ideal = Heading(key=f"idealised_{key}", title=f"{title}, parameters x bits", unit="bytes", source="planned", shown=False)
    parameters = sizes.architecture_of(model).parameters

    def idealised(line: Line) -> Cell:
        bits = sizes.nominal_bits(line.variant)
        return Cell(sizes.ideal_bytes(parameters, bits) if bits else None)

    return [
        Field(heading, lambda line: Cell.of(weights[line.variant].weight_bytes, sizes.gigabytes)),
        Field(ideal, idealised),
    ]


def planned_bits(claims: ClaimTable, lines: Sequence[Line]) -> Field:
    """Bits per value of the first model that the claimed table names."""
    size, model = next(iter(claims.models.items()))
    title = f"{claims.headings['bits']}, {claims.headings[size].split(maxsplit=1)[0]}"
    weights = sizes.planned_weights(model, (line.variant for line in lines))
    heading = Heading(key="planned_bits", title=title, unit="bits", source="planned", numeric=True)
    return Field(heading, lambda line: Cell.of(sizes.bits_per_weight(model, weights[line.variant]), "{:.2f}".format))


def planned_notes(claims: ClaimTable, lines: Sequence[Line]) -> list[str]:
    """What readers must know about the planned sizes: each sentence once, with the lines it applies to."""
    weights = sizes.planned_weights(next(iter(claims.models.values())), (line.variant for line in lines))
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        if weights[line.variant].note:
            found.setdefault(weights[line.variant].note, {})[line.label] = None
    return [f"planned{'' if len(labels) == len(lines) else ' ' + ', '.join(labels)}: {note}" for note, labels in found.items()]


@cache
def metric_heading(name: str, title: str = "") -> Heading:
    """The heading of a metric's column, under its own title unless another is given."""
    column = column_of(name)
    return Heading(key=name, title=title or column.heading, unit=column.unit, source="measured", numeric=True)


def measured(name: str, title: str = "", show: Callable[[float], str] | None = None) -> Field:
    """A metric's column with its own title and format, unless others are given."""
    column = column_of(name)

    def text(line: Line) -> Callable[[float], str]:
        return show or (lambda value: column.write_with_spread(value, line.number))

    return Field(metric_heading(name, title), lambda line: Cell.of(line.number(name), text(line)))


def background(*names: str) -> list[Field]:
    """Metrics that go to CSV and JSON only."""
    fields = [measured(name, name, significant) for name in names]
    return [replace(field, heading=replace(field.heading, shown=False)) for field in fields]


def size(reference: str) -> list[Field]:
    """Weight bytes as loaded, and their ratio to the reference's."""
    ratio = Heading(key="weight_bytes_ratio", title=f"Size, x {reference}", unit="ratio", source="measured", numeric=True)
    return [
        measured("weight_bytes", "Size"),
        Field(ratio, lambda line: Cell.of(line.over_reference("weight_bytes"), times)),
    ]


def divergence() -> list[Field]:
    """Mean KLD with its standard error."""
    return [measured("kld_mean"), *background("kld_mean_se")]


def word(scale: Scale, key: str, title: str, pick: Callable[[Scale, float], str] = Scale.word) -> Field:
    """What ``pick`` makes of the scale's figure, with a sign where the figure's 95 % interval reaches another word."""

    def cell(line: Line) -> Cell:
        value = line.number(scale.figure)
        if value is None:
            return Cell(None)
        ends = [end for end in (line.number(f"{scale.figure}_low"), line.number(f"{scale.figure}_high")) if end is not None]
        return Cell(pick(scale, value), mark=f" {NEAR_EDGE}" if len({pick(scale, end) for end in ends}) > 1 else "")

    return Field(Heading(key=key, title=title, source="measured"), cell)


def speed(baseline: str) -> list[Field]:
    """Decode throughput over the baseline's, from the same process where the baseline is the row's anchor."""
    heading = Heading(key="decode_speed_ratio", title=f"Speed, x {baseline}", unit="ratio", source="measured", numeric=True)
    alternated = Heading(key="decode_speed_alternated", title="Alternated in one process", shown=False)

    def cell(line: Line) -> Cell:
        return replace(Cell.of(line.speed_ratio, times), mark="" if line.alternated else BETWEEN_PROCESSES)

    return [
        Field(heading, cell),
        Field(alternated, lambda line: Cell(None if line.speed_ratio is None else line.alternated)),
        *background("decode_ratio", "decode_ratio_low", "decode_ratio_high", "decode_tps", "decode_tps_low", "decode_tps_high"),
    ]


def speed_word(title: str) -> Field:
    """The word for the speed ratio."""

    def cell(line: Line) -> Cell:
        ratio = line.speed_ratio
        return Cell(None if ratio is None else words().inference_speed.word(ratio))

    return Field(Heading(key="inference_speed", title=title, source="measured"), cell)


def status(*, shown: bool) -> list[Field]:
    """How each line ended; the reason is a footnote for people, and a column for machines."""

    def reason(line: Line) -> Cell:
        return Cell((line.row.text("reason") if line.row else "") or None)

    return [
        Field(Heading(key="status", title="Status", shown=shown), lambda line: Cell(line.status)),
        Field(Heading(key="reason", title="Reason", shown=False), reason),
    ]
