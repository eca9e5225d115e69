"""Lines of a table before they become cells: the rows of one group beside the claims about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantbench.claims.claimed import ClaimTable
from quantbench.results.rows import FAILED, Group, Row

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The measured row (None where nothing was planned) and the claimed cells."""

    group: Group
    label: str
    variant: str
    row: Row | None
    claims: Mapping[str, str]

    @property
    def status(self) -> str:
        """The row's status; ``not run`` where nothing was planned."""
        return self.row.text("status") if self.row else "not run"

    @property
    def failure(self) -> str:
        """What went wrong, in a sentence; empty where nothing did or nothing was planned."""
        return f"{self.label}: {self.trouble}" if self.trouble else ""

    @property
    def trouble(self) -> str:
        """The same without the line's label, so that it can stand for many lines."""
        if self.row is None:
            return ""
        if self.row.ok:
            failed = self.row.text(FAILED)
            return f"otherwise {failed}" if failed else ""
        return f"{self.status}, {self.row.text('reason') or 'no reason kept'}"

    @property
    def alternated(self) -> bool:
        """Whether its timed rounds alternated with the reference's in one process."""
        return self.row is not None and self.row.alternated

    @property
    def speed_ratio(self) -> float | None:
        """Decode throughput over the reference's, from alternating rounds where there are any."""
        return self.group.speed_ratio(self.row) if self.row else None

    @property
    def speed_doubt(self) -> str:
        """Why its speed is not compared with the baseline's; empty where it is."""
        return self.group.speed_doubt(self.row) if self.row and self.row.ok else ""

    def number(self, name: str) -> int | float | None:
        """A figure of the row; None where it is null or there is no row."""
        return self.row.number(name) if self.row else None

    def over_reference(self, name: str) -> float | None:
        """A figure over that of the reference's own row."""
        return self.group.over_reference(self.row, name) if self.row else None


def lines_of(group: Group, claims: ClaimTable, belongs: Callable[[Row], bool]) -> list[Line]:
    """The claimed rows in the text's order, measured or not, then every other row of the group that ``belongs``.

    Empty where no row of the group ``belongs``.
    """
    rows = [row for row in group.rows if belongs(row)]
    if not rows:
        return []
    lines: list[Line] = []
    key = claims.first
    for claim in claims.rows:
        found = [row for row in rows if row.variant == claim.variant and not row.flag("control")]
        lines += [_line(group, row, claim.cells[key], claim.cells) for row in found]
        if not found:
            lines.append(Line(group=group, label=claim.cells[key], variant=claim.variant, row=None, claims=claim.cells))
    shown = {id(line.row) for line in lines}
    others = [row for row in rows if id(row) not in shown]
    return lines + [_line(group, row, row.text("artifact") or row.text("precision").upper(), {}) for row in others]


def claimed_lines(claims: ClaimTable) -> list[Line]:
    """The claimed rows in the text's order, with nothing measured."""
    nothing = Group(())
    return [
        Line(group=nothing, label=claim.cells[claims.first], variant=claim.variant, row=None, claims=claim.cells)
        for claim in claims.rows
    ]


def plain_lines(group: Group) -> list[Line]:
    """Every row of the group, with nothing claimed."""
    return [_line(group, row, row.variant, {}) for row in group.rows]


def failures(lines: Iterable[Line], named: Callable[[Line], str] = lambda line: line.label) -> list[str]:
    """What went wrong, each sentence once, after the line as ``named``, or after the number of lines it applies to."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.trouble:
            found.setdefault(line.trouble, []).append(named(line))
    return [
        f"{names[0]}: {trouble}" if len(names) == 1 else f"{len(names)} scenarios ({_some(names)}): {trouble}"
        for trouble, names in found.items()
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _MOST_NAMED else f"{', '.join(names[:_MOST_NAMED])} and others"


def _line(group: Group, row: Row, label: str, claims: Mapping[str, str]) -> Line:
    return Line(group=group, label=label + row.suffix, variant=row.variant, row=row, claims=claims)
