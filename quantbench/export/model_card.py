"""The table that people put on a model's page on a hub: Markdown, by size, with what it was measured on and how to repeat it.

It has no front matter: it is a part of a page that has its own. The hub's structured results do not fit these figures either:
``.eval_results`` takes data sets that are registered as benchmarks, and ``model-index`` a data set and a metric of the hub,
while KLD is measured against a reference on prompts of one's own.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence

from quantbench.advice.decision import Choice, decide_on
from quantbench.advice.headline import headline, others
from quantbench.core.record import Column
from quantbench.core.scenario import PROFILES, Conditions, short_name
from quantbench.core.text import escape_markdown, one_line
from quantbench.core.units import with_interval
from quantbench.export import Exporter, ExportRow
from quantbench.planning.published import PLACE
from quantbench.results.rows import Group, Row, groups
from quantbench.results.schema import column_of
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble, instrument_note
from quantbench.tables.lines import Line, plain_lines
from quantbench.tables.render import as_markdown
from quantbench.tables.table import Cell, Heading

_TITLES: Mapping[str, str] = {
    "bits_per_weight": "", "weight_bytes": "Size", "kld_mean": "KLD, nats", "top1_agreement": "", "ppl_ratio": "",
    "decode_tps": "",
}  # fmt: skip
"""The columns in their order, with titles other than their own."""

_SPREAD = ("kld_mean", "decode_tps")
"""Columns that show their 95 % intervals."""

_ALWAYS = ("weight_bytes", "kld_mean")
"""Columns that stand there with reasons where nobody measured them; the others are left out then."""

_READ = (
    "KLD: mean KL divergence from the reference, 0 where equal; top-1: share of positions with the same likeliest token; in "
    "brackets: 95 % intervals; MB = 10^6 bytes"
)


def write(rows: Iterable[ExportRow], columns: Sequence[Column]) -> Iterator[str]:
    """A section for each model and prompt set with a measured variant; only these ``columns``. Modules have no such page."""
    import pandas as pd

    frame = pd.DataFrame(list(rows), dtype=object)
    wanted = [name for name in _TITLES if name in {column.name for column in columns}]
    for group in groups(frame):
        if group.reads != "inputs" and (lines := _lines(group, wanted)):
            yield _section(group, decide_on(group), lines, wanted)


def _lines(group: Group, wanted: Sequence[str]) -> list[Line]:
    """The measured variants with one of the figures, the smallest first; those of unknown size last."""
    found = [
        line
        for line in plain_lines(group)
        if line.row and line.row.ok and not line.row.flag("control") and any(line.number(name) is not None for name in wanted)
    ]
    return sorted(found, key=lambda line: (line.number("weight_bytes") is None, line.number("weight_bytes") or 0))


def _section(group: Group, choice: Choice | None, lines: Sequence[Line], wanted: Sequence[str]) -> str:
    known = [name for name in wanted if name in _ALWAYS or any(line.number(name) is not None for line in lines)]
    fields = [f.Field(Heading(key="variant", title="Variant"), lambda line: Cell(line.label)), *map(_field, known)]
    notes = [_READ, *_ties(choice), *_uncertain(lines, known), *_others(group), *instrument_note(group)]
    table = assemble("model-card", "What quantization costs", lines, fields, notes)
    lead = f"{escape_markdown(headline(choice))}.\n\n" if choice and choice.pick else ""
    return f"{lead}{as_markdown([table])}\n{_again(group, lines)}\n"


def _field(name: str) -> f.Field:
    """A figure; one of _SPREAD with its interval, where that is not a point."""
    column = column_of(name)
    if name not in _SPREAD:
        return f.measured(name, _TITLES[name], column.write)

    def cell(line: Line) -> Cell:
        low, high = line.number(f"{name}_low"), line.number(f"{name}_high")
        ends = (None, None) if low == high else (low, high)
        return Cell.of(line.number(name), lambda value: with_interval(value, *ends, show=column.write))

    return f.Field(f.metric_heading(name, _TITLES[name]), cell)


def _ties(choice: Choice | None) -> Iterator[str]:
    """The variants that the decision could not tell from its pick by speed, in its own words."""
    tied: dict[str, list[str]] = {}
    for other in others(choice) if choice else ():
        if other.tied:
            tied.setdefault(other.reason, []).append(other.name)
    for reason, names in tied.items():
        yield f"tied in speed with the pick: {', '.join(names)} ({reason})"


def _uncertain(lines: Sequence[Line], known: Sequence[str]) -> Iterator[str]:
    """What disturbed a speed, and why a figure has no interval, each with the variants it holds for."""
    found: dict[str, list[str]] = {}
    for line in lines:
        row = line.row or Row({})
        if row.flag("disturbed") and any(f.sign_of(row, name) for name in known):
            found.setdefault(f"{f.BESIDE_OTHER_WORK} {row.text('disturbance') or 'other work'}", []).append(line.label)
        for name in (each for each in known if each in _SPREAD):
            reason = row.null_reason(f"{name}_low")
            if reason and row.number(name) is not None:
                found.setdefault(f"no interval of {column_of(name).title}: {reason}", []).append(line.label)
    for said, names in found.items():
        yield f"{said} ({', '.join(names)})"


def _others(group: Group) -> Iterator[str]:
    """What the reference differs from itself, and how many variants were not measured."""
    control = next((row for row in group.rows if row.ok and row.flag("control")), None)
    kld = control.number("kld_mean") if control else None
    if kld is not None:
        shown = column_of("kld_mean").write(kld)
        yield f"noise floor: the reference, measured a second time, has a KLD of {shown} nats from itself"
    if missing := [row.text("status") for row in group.rows if not row.ok]:
        counts = ", ".join(f"{missing.count(status)} {status}" for status in dict.fromkeys(missing))
        yield f"{len(missing)} of {len(group.rows)} variants planned have no figures: {counts}"


def _again(group: Group, lines: Sequence[Line]) -> str:
    """How to measure the same again, and with which versions; a path shows only its last part, as everywhere."""
    command = shlex.join(["quantbench", "run", *_arguments(group, [line.row for line in lines if line.row])])
    found = next((row.versions for row in group.rows if row.versions), {})
    others = ", ".join(f"{name} {found[name]}" for name in sorted(found) if name != "quantbench")
    with_others = f", with {escape_markdown(others)}" if others else ""
    measured = f"Measured by quantbench {escape_markdown(found.get('quantbench', ''))}".rstrip() + with_others
    return f"{measured}. To measure these variants again:\n\n```console\n{one_line(command)}\n```\n"


def _arguments(group: Group, rows: Sequence[Row]) -> Iterator[str]:
    """The options of the command; what is as by default is left out."""
    row, usual = rows[0], Conditions()
    yield from ("--model", group.model)
    made = [each for each in rows if not each.text("artifact")]
    for axis in ("method", "precision"):
        if made:
            yield from (f"--{axis}", ",".join(sorted({each.text(axis) for each in made})))
    for each in rows:
        if each.text("artifact"):
            yield from ("--artifact", f"{each.text('artifact')}={short_name(each.facts.get(PLACE, ''))}")
    yield from ("--prompts", short_name(row.prompt_set))
    if row.batch > 1:
        yield from ("--batch", str(row.batch))
    for name in ("reference", "device", "output_tokens", "seed"):
        if row.text(name) and row.text(name) != str(getattr(usual, name)):
            yield from (f"--{name.replace('_', '-')}", row.text(name))
    if row.number("continuation_tokens") == PROFILES["quick"].asked(usual).continuation_tokens:
        yield from ("--profile", "quick")


MODEL_CARD = Exporter(name="model-card", write=write, figures=True, only=tuple(_TITLES))
