"""Quantized after training (PTQ) against trained with simulated quantization (QAT), in the same number format.

One line per pair: a precision of torchao beside that of ``qat`` with the same storage. Every finding is a text, and a missing
one says why; the figures behind them go to CSV and JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

from quantbench.core.statistics import minimum_detectable_effect, t_quantile
from quantbench.core.units import format_seconds, short, with_error
from quantbench.methods.qat import SAME_AS
from quantbench.results.rows import Group, Row
from quantbench.tables import TableKind
from quantbench.tables.assemble import assemble, instrument_note
from quantbench.tables.fields import Field
from quantbench.tables.lines import Line
from quantbench.tables.table import Cell, Heading, Scalar

if TYPE_CHECKING:

    from quantbench.tables.table import Table

QAT_CLOSER = "QAT closer"
PTQ_CLOSER = "PTQ closer"
NO_DIFFERENCE = "no difference found"

_QAT, _PTQ = "qat", "torchao"
_LOSSES = "qat_losses"
_NOTES = (
    "PTQ: quantized without training; QAT: self-distilled with simulated quantization, then quantized the same way",
    "difference: KLD of QAT minus that of PTQ, negative where QAT is closer to the reference",
    "its standard error treats the two as independent (root of the sum of squares): conservative, as both saw the same tokens",
    "verdict: a two-sided t test of the difference at 5 %, prompts - 1 degrees of freedom",
    "detectable: the least true difference that this test would have found with 80 % power",
    "loss: mean KL(reference || model) in nats on the training text, each end averaged over several steps",
)


@dataclass(frozen=True, kw_only=True)
class TrainedPair(Line):
    """The line of QAT beside that of PTQ; each is the median of its own repeats."""

    ptq: Line

    @property
    def sides(self) -> tuple[Line, Line]:
        """PTQ, QAT."""
        return self.ptq, self

    @cached_property
    def difference(self) -> tuple[float, float | None] | None:
        """KLD of QAT minus that of PTQ, and its standard error; None where one of them is missing."""
        (before, before_se), (after, after_se) = ((side.number("kld_mean"), side.number("kld_mean_se")) for side in self.sides)
        if before is None or after is None:
            return None
        known = before_se is not None and after_se is not None
        return after - before, math.hypot(before_se or 0.0, after_se or 0.0) if known else None

    @cached_property
    def tested(self) -> tuple[float, float, int] | None:
        """The difference, its standard error and degrees of freedom: the prompts of the side with fewer, minus one."""
        counts = [side.number("clusters") for side in self.sides]
        known = [int(count) for count in counts if count is not None]
        if self.difference is None or len(known) < len(counts):
            return None
        value, error = self.difference
        return None if error is None else (value, error, min(known) - 1)

    @property
    def verdict(self) -> str | None:
        """Which is closer to the reference; None where it cannot be told."""
        if self.tested is None:
            return None
        value, error, degrees = self.tested
        if abs(value) <= t_quantile(degrees) * error:
            return NO_DIFFERENCE
        return QAT_CLOSER if value < 0 else PTQ_CLOSER

    @property
    def detectable(self) -> float | None:
        """The least true difference in nats that would have been found with 80 % power; None where nothing was tested."""
        return minimum_detectable_effect(*self.tested[1:]) if self.tested else None

    @cached_property
    def losses(self) -> list[float]:
        """Averages of the training loss over its course, in nats; empty where none were kept."""
        try:
            facts = self.row.facts if self.row else {}
            return [float(each) for each in json.loads(facts.get(_LOSSES) or "[]")]
        except (ValueError, TypeError, AttributeError):
            return []


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per run, model and prompt set in which QAT was planned."""
    return [made for group in groups if group.reads == "prompts" and (made := _table(group))]


def _table(group: Group) -> Table | None:
    pairs = _pairs(group)
    if not pairs:
        return None
    fields = [
        _field("qat", "QAT", lambda pair: pair.label),
        _field("ptq", "PTQ", lambda pair: pair.ptq.label),
        _field("ptq_kld", "PTQ KLD ± s.e., nats", lambda pair: _kld(pair.ptq), numeric=True),
        _field("qat_kld", "QAT KLD ± s.e., nats", _kld, numeric=True),
        _field("difference", "QAT - PTQ ± s.e., nats", _difference, numeric=True),
        _field("verdict", "Verdict", _verdict),
        _field("ptq_top1", "PTQ top-1", lambda pair: _top1(pair.ptq), numeric=True),
        _field("qat_top1", "QAT top-1", _top1, numeric=True),
        _field("training", "Training", _training, numeric=True),
        _field("loss", "Loss, first to last, nats", _loss, numeric=True),
        *_raw(),
    ]
    notes = [*_NOTES, *instrument_note(group)]
    notes += [pair.ptq.failure for pair in pairs if pair.ptq.failure]
    notes += [note for pair in pairs for note in (*_absent(pair), *_curve(pair))]
    return assemble("qat", "Quantization-aware training", pairs, fields, notes)


def _pairs(group: Group) -> list[TrainedPair]:
    """A pair for every precision of which one side was planned; empty where no QAT was."""
    rows = {row.variant: row for row in group.rows if not row.flag("control")}
    if not any(row.text("method") == _QAT for row in rows.values()):
        return []
    made = [_pair(group, rows, name) for name in SAME_AS]
    return [pair for pair in made if pair.row or pair.ptq.row]


def _pair(group: Group, rows: Mapping[str, Row], precision: str) -> TrainedPair:
    before, after = f"{_PTQ}/{SAME_AS[precision]}", f"{_QAT}/{precision}"
    ptq, qat = rows.get(before), rows.get(after)
    untrained = Line(group=group, label=ptq.label if ptq else before, variant=before, row=ptq, claims={})
    return TrainedPair(group=group, label=qat.label if qat else after, variant=after, row=qat, claims={}, ptq=untrained)


def _field(key: str, title: str, text: Callable[[TrainedPair], str], *, numeric: bool = False) -> Field:
    heading = Heading(key=key, title=title, source="measured" if numeric else "", numeric=numeric)
    return Field(heading, lambda line: Cell(text(cast("TrainedPair", line))))


def _hidden(key: str, unit: str, value: Callable[[TrainedPair], Scalar]) -> Field:
    heading = Heading(key=key, title=key, unit=unit, source="measured", shown=False)
    return Field(heading, lambda line: Cell(value(cast("TrainedPair", line))))


def _raw() -> list[Field]:
    """Figures for CSV and JSON only."""
    of_both = {"kld_mean": "nats", "kld_mean_se": "nats", "top1_agreement": "ratio", "top1_agreement_se": "ratio"}
    sides: dict[str, Callable[[TrainedPair], Line]] = {"ptq": lambda pair: pair.ptq, "qat": lambda pair: pair}

    def figure(side: str, name: str) -> Callable[[TrainedPair], Scalar]:
        return lambda pair: sides[side](pair).number(name)

    return [
        *(_hidden(f"{side}_{name}", unit, figure(side, name)) for name, unit in of_both.items() for side in sides),
        _hidden("kld_difference", "nats", lambda pair: pair.difference[0] if pair.difference else None),
        _hidden("kld_difference_se", "nats", lambda pair: pair.difference[1] if pair.difference else None),
        _hidden("kld_difference_detectable", "nats", lambda pair: pair.detectable),
        _hidden("training_s", "s", lambda pair: pair.number("quantize_s")),
        _hidden("loss_first", "nats", lambda pair: pair.losses[0] if pair.losses else None),
        _hidden("loss_last", "nats", lambda pair: pair.losses[-1] if pair.losses else None),
        _hidden("losses", "nats", lambda pair: json.dumps(pair.losses) if pair.losses else None),
        _hidden("ptq_status", "", lambda pair: pair.ptq.status),
        _hidden("qat_status", "", lambda pair: pair.status),
    ]


def _status(line: Line) -> str:
    """What replaces a figure: not run, how the run ended, or not measured."""
    return line.status if line.status != "ok" else "not measured"


def _kld(line: Line) -> str:
    value = line.number("kld_mean")
    return _status(line) if value is None else with_error(value, line.number("kld_mean_se"))


def _top1(line: Line) -> str:
    value = line.number("top1_agreement")
    return _status(line) if value is None else f"{value:.1%}"


def _difference(pair: TrainedPair) -> str:
    return with_error(*pair.difference) if pair.difference else "not measured"


def _verdict(pair: TrainedPair) -> str:
    if pair.verdict == NO_DIFFERENCE and pair.detectable is not None:
        return f"{NO_DIFFERENCE} (detectable: {short(pair.detectable)} nats)"
    return pair.verdict or "not judged"


def _training(pair: TrainedPair) -> str:
    seconds = pair.number("quantize_s")
    return _status(pair) if seconds is None else format_seconds(seconds)


def _loss(pair: TrainedPair) -> str:
    return f"{short(pair.losses[0])} to {short(pair.losses[-1])}" if pair.losses else _status(pair)


def _absent(pair: TrainedPair) -> list[str]:
    """Why figures of sides that were measured are missing."""
    figures = {"kld_mean": "KLD", "kld_mean_se": "standard error", "clusters": "number of prompts", "top1_agreement": "top-1"}
    expected = [(side, name, what) for side in pair.sides for name, what in figures.items()]
    expected.append((pair, "quantize_s", "training time"))
    found: dict[tuple[str, str], list[str]] = {}
    for side, name, what in expected:
        if side.row and side.row.ok and side.number(name) is None:
            found.setdefault((side.label, side.row.null_reason(name) or "no reason kept"), []).append(f"no {what}")
    if pair.row and pair.row.ok and not pair.losses:
        found[pair.label, "the row keeps none"] = ["no loss"]
    return [f"{label}: {', '.join(what)}: {why}" for (label, why), what in found.items()]


def _curve(pair: TrainedPair) -> list[str]:
    """The whole course of the loss, if training did not bring the model measurably closer."""
    if pair.verdict in (None, QAT_CLOSER) or not pair.losses:
        return []
    return [f"{pair.label}, {pair.verdict}: the loss went {', '.join(short(each) for each in pair.losses)} nats"]


QAT = TableKind(name="qat", about="trained with simulated quantization, against quantized untrained", place=60, build=table)
