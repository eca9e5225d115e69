"""All rows of a run in one table that can be sorted and filtered; every missing figure has its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from quantbench.core.record import Column
from quantbench.core.scenario import short_name
from quantbench.results.rows import Row
from quantbench.results.schema import shown_columns
from quantbench.tables.fields import sign_of

NO_REASON = "no reason was kept"
# Characters shown: a failure of a library can bring pages of text.
_MOST_REASON = 1500
_MOST_TRACEBACK = 3000


@dataclass(frozen=True, slots=True)
class RowEntry:
    """A cell: its text and its sort key (empty sorts last); for a dash, the reason and its number where it has one."""

    text: str
    key: str = ""
    reason: str = ""
    why: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLine:
    """A row: what the filters match, and its cells."""

    method: str
    status: str
    words: str
    entries: tuple[RowEntry, ...]


@dataclass(frozen=True, slots=True)
class Title:
    """A column's heading, and whether it holds numbers."""

    text: str
    numeric: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The table of all rows; ``reasons`` are numbered from 1, ``total`` includes rows that are not shown."""

    titles: tuple[Title, ...]
    lines: tuple[RowLine, ...]
    methods: tuple[str, ...]
    statuses: tuple[str, ...]
    reasons: tuple[str, ...]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotMeasured:
    """A scenario that was not measured: why, and the end of a failure's traceback where one was kept."""

    scenario: str
    status: str
    reason: str
    traceback: str


@dataclass(frozen=True, slots=True)
class _Reasons:
    """Distinct reasons, numbered in order of appearance."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, reason: str) -> int:
        return self.numbers.setdefault(reason, len(self.numbers) + 1)


def listing(rows: Sequence[Row], max_rows: int) -> Listing:
    """At most ``max_rows`` rows; figures that no row has are left out."""
    figures = [each for each in shown_columns("report") if any(row.number(each.name) is not None for row in rows)]
    repeated = len({row.text("repeat") for row in rows}) > 1
    reasons = _Reasons()
    lines = [_line(row, figures, reasons, repeated=repeated) for row in rows[:max_rows]]
    return Listing(
        titles=(
            *map(Title, ("Variant", "Model", "Prompts", "Status")),
            *(Title(figure.heading, numeric=True) for figure in figures),
            *map(Title, ("Kernel", "Reason")),
        ),
        lines=tuple(lines),
        methods=tuple(sorted({line.method for line in lines})),
        statuses=tuple(sorted({line.status for line in lines})),
        reasons=tuple(reasons.numbers),
        total=len(rows),
    )


def failures(rows: Sequence[Row], max_rows: int) -> list[NotMeasured]:
    """At most ``max_rows`` rows that are not ok, failures before skips."""
    bad = sorted((row for row in rows if not row.ok), key=lambda row: row.text("status") == "skipped")
    return [
        NotMeasured(
            scenario=row.text("scenario_id") + (f" #{int(again) + 1}" if (again := row.number("repeat")) else ""),
            status=row.text("status"),
            reason=_reason(row),
            traceback="" if row.text("status") == "skipped" else row.text("traceback")[-_MOST_TRACEBACK:],
        )
        for row in bad[:max_rows]
    ]


def _line(row: Row, figures: Sequence[Column], reasons: _Reasons, *, repeated: bool) -> RowLine:
    check = " (instrument check)" if row.flag("instrument_check") else ""
    again = f" #{int(row.number('repeat') or 0) + 1}" if repeated else ""
    texts = [
        row.label + again, short_name(row.text("model")) + check, row.prompts, row.text("status"),
    ]  # fmt: skip
    kernel = row.text("kernel")
    why = "" if row.ok else _reason(row)
    entries = (
        *(RowEntry(text, text) for text in texts),
        *(_entry(row, figure, reasons) for figure in figures),
        RowEntry(kernel, kernel) if kernel else _absent(row, "kernel", reasons),
        RowEntry(why, why),
    )
    words = " ".join([*texts, kernel, why]).lower()
    return RowLine(method=row.text("method"), status=row.text("status"), words=words, entries=entries)


def _entry(row: Row, figure: Column, reasons: _Reasons) -> RowEntry:
    value = row.number(figure.name)
    if value is None:
        return _absent(row, figure.name, reasons)
    return RowEntry(figure.write_with_spread(value, row.number) + sign_of(row, figure.name), repr(value))


def _absent(row: Row, name: str, reasons: _Reasons) -> RowEntry:
    """A dash: in an ok row with the number of its reason; any other row has its reason in the last column."""
    if not row.ok:
        return RowEntry("", reason=_reason(row))
    reason = row.null_reason(name) or NO_REASON
    return RowEntry("", reason=reason, why=reasons.number(reason))


def _reason(row: Row) -> str:
    reason = row.text("reason") or NO_REASON
    more = len(reason) - _MOST_REASON
    return reason if more <= 0 else f"{reason[:_MOST_REASON]} … ({more} more characters)"
