"""What was measured of one variant, to be asserted on: figures are numbers that know their interval and where they are from.

A figure that was not measured, or whose time says nothing, is never quietly false: using it ends with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, Self

from quantbench.core.errors import QuantbenchError, UnsupportedError, unknown_name
from quantbench.core.units import significant, with_interval
from quantbench.results.schema import shown_columns, table_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from quantbench.core.record import Column
    from quantbench.results.rows import Row

_DIGITS = 4
_OVER_ANCHOR = ("prefill_ratio", "decode_ratio", "itl_ratio", "call_ratio")
"""Figures over the anchor's of the same process."""

_NO_REASON = "no reason was stored"


def _unsupported(sentence: str) -> NoReturn:
    __tracebackhide__ = True
    raise UnsupportedError(sentence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a measurement is read: ``again`` is the command that measures it again, ``untimed`` why nothing was timed, if so.

    Before a time is read that other work disturbed, ``steady`` measures again and gives the new row. ``doubt`` is called with
    a sentence where a speed is used that cannot be judged here, and does not return. ``seen`` is told of each figure read.
    """

    again: str
    untimed: str = ""
    steady: Callable[[], Row] | None = None
    doubt: Callable[[str], NoReturn] = _unsupported
    seen: Callable[[MeasuredFigure | Absent], None] = lambda _: None


class MeasuredFigure(float):
    """A figure of a measurement: a float, in its column's unit, that knows its 95 % interval and where it comes from.

    ``low`` and ``high`` are the ends of the interval, None where it has none. ``about`` are lines for people: the scenario, the
    reference, the meaning, and how to measure it again.
    """

    def __new__(cls, value: float, *_: object) -> Self:
        """The number; what else it is made of is none of a float's business."""
        return super().__new__(cls, value)

    def __init__(self, value: float, column: Column, row: Row, about: tuple[str, ...]) -> None:
        """The row's ``value`` in a column."""
        self.name, self.about = column.name, about
        self.low, self.high = (row.number(f"{column.name}_{end}") for end in ("low", "high"))
        self._no_interval = row.null_reason(f"{column.name}_low") or "this figure is stored without one"
        unit = "" if column.unit == "ratio" else column.unit
        self._text = f"{self.name} {with_interval(value, self.low, self.high, unit, _exactly)}"

    def __repr__(self) -> str:
        """``kld_mean 0.01402 nats (0.01213 to 0.01541)``."""
        return self._text

    def surely_below(self, bound: float) -> Surely:
        """Whether the whole interval is below ``bound``; QuantbenchError where there is no interval."""
        __tracebackhide__ = True
        _, high = self._interval()
        return Surely(high < bound, self, f"below {bound:g}")

    def surely_above(self, bound: float) -> Surely:
        """Whether the whole interval is above ``bound``; QuantbenchError where there is no interval."""
        __tracebackhide__ = True
        low, _ = self._interval()
        return Surely(low > bound, self, f"above {bound:g}")

    def _interval(self) -> tuple[float, float]:
        __tracebackhide__ = True
        if self.low is None or self.high is None:
            raise QuantbenchError(f"{self.name} has no interval ({self._no_interval}); compare it with < or >")
        return self.low, self.high


class Surely(int):
    """Whether something is surely so, as True or False; its text says of which figure."""

    def __new__(cls, sure: bool, *_: object) -> Self:
        """As a number, so that it is equal to True or False."""
        return super().__new__(cls, sure)

    def __init__(self, sure: bool, figure: MeasuredFigure, what: str) -> None:
        """The answer about a figure."""
        self._sentence = f"{figure!r} is {'' if sure else 'not '}surely {what} [{figure.about[0]}]"

    def __repr__(self) -> str:
        """The answer as a sentence."""
        return self._sentence


class Absent:
    """Stands for a figure that was not measured, or that says nothing: using it as a number or a truth ends with the reason."""

    def __init__(self, name: str, reason: str, refuse: Callable[[str], NoReturn]) -> None:
        """``refuse`` is called with a sentence and does not return."""
        self.name, self.reason, self._refuse = name, reason, refuse

    def __repr__(self) -> str:
        """``kld_mean: not measured (why)``."""
        return f"{self.name}: {self.reason}"

    def _used(self, *_: object) -> NoReturn:
        __tracebackhide__ = True
        self._refuse(repr(self))

    @property
    def low(self) -> NoReturn:
        """There is none."""
        __tracebackhide__ = True
        self._used()

    high = low
    surely_below = surely_above = _used
    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __float__ = __int__ = __index__ = __abs__ = __neg__ = __round__ = _used
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = __rpow__ = _used
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __contains__ = __len__ = __iter__ = __getitem__ = _used
    __eq__ = __ne__ = _used
    __hash__ = object.__hash__


class Measurement:
    """One row of ``scenarios`` to assert on: its attributes are the table's columns.

    Numbers are Figures, texts and truths plain values; whatever was not measured is Absent.
    """

    def __init__(self, row: Row, reading: Reading) -> None:
        """``row`` was measured successfully."""
        self._row, self._reading = row, reading

    def __getattr__(self, name: str) -> Any:
        """The row's value in the column of that name."""
        column = _columns().get(name)
        if column is None:
            raise AttributeError(str(unknown_name("column", name, _columns())) if name[:1] != "_" else name)
        if column.timed and self._row.flag("disturbed") and self._reading.steady:
            self._row = self._reading.steady()
            self._reading = replace(self._reading, steady=None)  # once is enough
        value = self._value(column)
        if isinstance(value, MeasuredFigure | Absent):
            self._reading.seen(value)
        return value

    def __dir__(self) -> Iterable[str]:
        """The columns too."""
        return [*super().__dir__(), *_columns()]

    def __repr__(self) -> str:
        """The scenario."""
        return f"<measurement of {self._row.text('scenario_id')}>"

    def __str__(self) -> str:
        """The scenario and its most important figures, a line each."""
        values = [self._value(column) for column in shown_columns("overview")]
        figures = [f"  {value!r}" for value in values if isinstance(value, MeasuredFigure)]
        return "\n".join([self._row.text("scenario_id"), *figures, f"  again: {self._reading.again}"])

    def _value(self, column: Column) -> Any:
        value, why = self._row.values.get(column.name), self._row.null_reason(column.name)
        if value is None:
            if not why and column.kind not in ("float", "int"):
                return None  # a text with nothing to say, as the reason of a row that is ok
            return self._absent(column, f"not measured: {why or _NO_REASON}", doubt=bool(why) and why == self._reading.untimed)
        if column.timed and self._row.flag("disturbed"):
            return self._absent(column, f"not judged, as other work disturbed it: {self._row.text('disturbance')}", doubt=True)
        stem = column.name.removesuffix("_low").removesuffix("_high")
        if stem in _OVER_ANCHOR and " " in self._row.text("anchor"):
            stand_in = f"not judged: the model's own anchor does not fit beside it, and {self._row.text('anchor')} stood in"
            return self._absent(column, stand_in, doubt=True)
        number = self._row.number(column.name) if column.kind in ("float", "int") else None
        return value if number is None else MeasuredFigure(number, column, self._row, self._about(column))

    def _absent(self, column: Column, reason: str, *, doubt: bool) -> Absent:
        return Absent(column.name, f"{reason} [{self._of()}]", self._reading.doubt if doubt else _missing)

    def _about(self, column: Column) -> tuple[str, ...]:
        return self._of(), column.doc, f"again: {self._reading.again}"

    def _of(self) -> str:
        """Which scenario, and what it is compared with."""
        anchored = f", anchor {anchor}" if (anchor := self._row.text("anchor")) else ""
        return f"{self._row.text('scenario_id')}, reference {self._row.text('reference')}{anchored}"


def _missing(sentence: str) -> NoReturn:
    __tracebackhide__ = True
    raise QuantbenchError(sentence)


def _exactly(value: float) -> str:
    """A whole number in full, any other with four digits: more than tables show, so that a comparison can be followed."""
    return str(value) if isinstance(value, int) else significant(value, _DIGITS)


@cache
def _columns() -> Mapping[str, Column]:
    return {column.name: column for column in table_columns("scenarios")}
