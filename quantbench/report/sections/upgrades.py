"""What upgrades of libraries cost: a sentence and a table for each, with verdicts in place of bare differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from quantbench.judge.compare import STATUS, Change
from quantbench.judge.compare.upgrades import upgrades
from quantbench.report.charts.look import subject
from quantbench.report.sections.tables import Head, Sheet, SheetField
from quantbench.results.rows import Group
from quantbench.results.schema import column_of
from quantbench.tables.table import DASH

if TYPE_CHECKING:
    from quantbench.judge.compare import Entry
    from quantbench.judge.compare.upgrades import Upgrade
    from quantbench.report._results import Results
    from quantbench.results.rows import Row

_MOST = 5
"""Upgrades shown, at most."""

_NAMED = 3
"""Scenarios named in a sentence, at most."""

_FIGURES: Mapping[str, str] = {
    "decode": "Decode speed", "call": "Call speed", "kld_mean": "KLD", "peak_rss_bytes": "", "peak_device_allocated_bytes": "",
}  # fmt: skip
"""The figures shown, with titles where their columns have none for a change."""

_WORDS: Mapping[Change, str] = {
    Change.SAME: "unchanged", Change.INSUFFICIENT: "not enough data", Change.INCOMPARABLE: "not comparable",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownUpgrade:
    """One upgrade: what became what, what changed with it, between which runs, and a table per model and prompt set."""

    title: str
    verdict: str
    about: str
    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...]


def shown_upgrades(results: Results) -> list[ShownUpgrade]:
    """The latest upgrades between the runs of these models; none where no version changed between two runs."""
    return [_shown(each) for each in upgrades(results.history, _MOST)]


def _shown(upgrade: Upgrade) -> ShownUpgrade:
    entries = upgrade.comparison.entries
    known = [name for name in _FIGURES if any(each.metric == name for each in entries)]
    verdicts = [_verdict(_title(name), [each for each in entries if each.metric == name]) for name in known]
    ended = [f"{each.scenario_id} {each.reason}" for each in entries if each.metric == STATUS]
    return ShownUpgrade(
        title=", ".join(f"{name} {old} → {new}" for name, (old, new) in upgrade.changes.items()),
        verdict="; ".join([*ended[:_NAMED], *verdicts]) or "nothing can be compared",
        about=_about(upgrade),
        sheets=tuple(_sheets(upgrade, known)),
        notes=tuple(_notes(entries, known)),
    )


def _title(figure: str) -> str:
    return _FIGURES[figure] or column_of(figure).title or "Peak on the device"


def _verdict(title: str, entries: Sequence[Entry]) -> str:
    """How a figure changed over all scenarios: what changed by name, the largest change first, and the rest by number."""
    counts = Counter(each.verdict for each in entries)
    moved = [each for each in entries if each.verdict in (Change.BETTER, Change.WORSE)]
    moved.sort(key=lambda each: -abs(each.change or 0))
    if not moved and len(counts) == 1:
        return f"{title}{'' if counts[Change.SAME] else ':'} {_WORDS[entries[0].verdict]}"
    named = [f"{each.scenario_id} {_change(each)}" for each in moved[:_NAMED]]
    named += [f"{len(moved) - _NAMED} more changed"] if len(moved) > _NAMED else []
    rest = [f"{counts[verdict]} {word}" for verdict, word in _WORDS.items() if counts[verdict]]
    return f"{title}: {', '.join([*named, *rest])}"


def _change(entry: Entry) -> str:
    """A change that counts, with its direction in words; of speeds by how much faster (+) or slower (-)."""
    return f"{entry.change:+.1%} ({entry.verdict})" if entry.change is not None else str(entry.verdict)


def _about(upgrade: Upgrade) -> str:
    before, after = (_counted(runs) for runs in upgrade.runs)
    hardware = Group(tuple(upgrade.rows.values())).hardware
    return "; ".join(filter(None, (hardware, f"before: {before}", f"after: {after}")))


def _counted(runs: Sequence[str]) -> str:
    return f"run {runs[0]}" if len(runs) == 1 else f"{len(runs)} runs, {runs[0]} to {runs[-1]}"


def _sheets(upgrade: Upgrade, known: Sequence[str]) -> Iterator[Sheet]:
    """A table for each model and prompt set of which something was compared."""
    cells: dict[str, dict[str, Entry]] = {}
    for entry in upgrade.comparison.entries:
        if entry.metric in known:
            cells.setdefault(entry.scenario_id, {})[entry.metric] = entry
    subjects: dict[tuple[str, str], list[Row]] = {}
    for name, row in upgrade.rows.items():
        if name in cells:
            subjects.setdefault((row.text("model"), row.text("prompts")), []).append(row)
    for rows in sorted(subjects.values(), key=lambda of: Group(tuple(of)).reads == "inputs"):  # modules last
        own = [name for name in known if any(name in cells[row.text("scenario_id")] for row in rows)]
        yield Sheet(
            title=subject(Group(tuple(rows))),
            caption=subject(Group(tuple(rows))),
            upper=(),
            lower=(Head("Variant"), *(Head(_title(name), numeric=True) for name in own)),
            rows=tuple(
                (SheetField(row.label, ""), *(_field(cells[row.text("scenario_id")].get(name)) for name in own)) for row in rows
            ),
            notes=(),
        )


def _field(entry: Entry | None) -> SheetField:
    if entry is None:
        return SheetField(DASH, "number missing")
    if entry.verdict in (Change.BETTER, Change.WORSE):
        return SheetField(_change(entry), f"number {entry.verdict}")
    return SheetField(_WORDS[entry.verdict], "number missing")


def _notes(entries: Sequence[Entry], known: Sequence[str]) -> Iterator[str]:
    """What would have shown, and why something has no verdict, with the number of figures that this holds for."""
    effects = [each.mde for each in entries if each.metric in known and each.verdict is Change.SAME and each.mde and each.gate]
    if effects:
        yield f"among the speeds that are unchanged, a change of {median(effects):.0%} would have shown (median)"
    reasons: dict[str, list[str]] = {}
    for each in entries:
        if each.reason and each.metric in ("", *known):
            figure = f" {_title(each.metric)}" if each.metric else ""
            reasons.setdefault(each.reason, []).append(each.scenario_id + figure)
    for reason, names in reasons.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"{', '.join(names[:_NAMED])}{more}: {reason}"
