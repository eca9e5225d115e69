"""From lines and fields to a Table with its caption and footnotes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantbench.advice.words import Scale, words
from quantbench.claims.claimed import ClaimTable
from quantbench.core.units import short
from quantbench.results.rows import REPEATS, Group
from quantbench.tables.fields import BESIDE_OTHER_WORK, BETWEEN_PROCESSES, NEAR_EDGE, Field
from quantbench.tables.lines import Line, failures
from quantbench.tables.table import Table

_REPEATED = "median of N: over N fresh processes; intervals reach from their lowest to their highest end"


def assemble(
    name: str, title: str, lines: Sequence[Line], fields: Sequence[Field], notes: Sequence[str], *, terse: bool = False
) -> Table:
    """A Table of ``lines``; after ``notes`` come those on signs in use, on failures and on missing figures.

    A ``terse`` one has only the notes that change how a figure is to be read.
    """
    group = lines[0].group
    fields = fields if group.rows else _paired(fields)
    rows = tuple(tuple(field.marked(line) for field in fields) for line in lines)
    shown = "".join(cell.shown for row in rows for cell in row)
    signs = {
        BETWEEN_PROCESSES: "between processes, where figures vary more; others alternated with the reference in one process",
        BESIDE_OTHER_WORK: "measured beside other work, which slowed it: do not compare it with others",
        NEAR_EDGE: "the 95 % interval of the KLD reaches another word",
    }
    return Table(
        name=name,
        title=f"{title}: {group.model}, prompts {group.prompts}" if group.rows else title,
        facts={
            "model": group.model or None,
            "instrument_check": group.instrument_check,
            "prompts": group.prompts or None,
            "reference": group.reference,
            "run_id": group.fact("run_id") or None,
            "started_at": group.fact("started_at"),
            "machine": group.fact("machine"),
            "hardware": group.hardware,
        },
        caption=_caption(group),
        headings=tuple(field.heading for field in fields),
        rows=rows,
        notes=(
            *notes,
            *(f"{sign} {meaning}" for sign, meaning in signs.items() if sign in shown),
            *_doubts(lines, fields),
            *([] if terse else failures(lines)),
            *([_REPEATED] if any(line.row and line.row.number(REPEATS) for line in lines) else []),
            *([] if terse else _missing(lines, fields)),
        ),
    )


def _doubts(lines: Sequence[Line], fields: Sequence[Field]) -> list[str]:
    """Why speeds are not compared, where a table would compare them; the first reason, and how many others there are."""
    if not any(field.heading.key in ("decode_speed_ratio", "inference_speed") for field in fields):
        return []
    found = list(dict.fromkeys(line.speed_doubt for line in lines if line.speed_doubt))
    if not found:
        return []
    others = f", and {len(found) - 1} others for such reasons" if len(found) > 1 else ""
    return [f"speeds that are not compared: {found[0]}{others}"]


def _caption(group: Group) -> str:
    if not group.rows:
        return "Nothing was measured here; quantbench run --model MODEL fills the measured columns"
    check = " (an instrument check)" if group.instrument_check else ""
    parts = (
        f"Measured on {group.model}{check} against {group.reference}",
        group.hardware,  # empty where a server did not report its hardware
        f"run {group.fact('run_id')}, started {group.fact('started_at')[:16]} UTC",
    )
    return "; ".join(filter(None, parts))


def _paired(fields: Sequence[Field]) -> list[Field]:
    """The fields, with measured columns hidden unless they stand beside a claimed one."""
    claimed = {field.heading.title for field in fields if field.heading.source == "claimed"}
    return [
        replace(field, heading=replace(field.heading, shown=False))
        if field.heading.source == "measured" and field.heading.title not in claimed
        else field
        for field in fields
    ]


def claim_notes(claims: ClaimTable, scale: Scale, group: Group) -> list[str]:
    """What the columns of a claimed table mean, with the rule behind its words."""
    bounds = [f"up to {short(edge)}" for edge in scale.edges] + ["above"]
    bands = ", ".join(f"{each.word} {bound} ({each.published})" for each, bound in zip(scale.anchors, bounds, strict=True))
    used = [words().sources[name] for name in dict.fromkeys(each.source for each in scale.anchors)]
    sources = "; ".join(f"{each.title}, {each.date}" for each in used)
    planned = f"planned: {', '.join(claims.models.values())}, by quantbench plan"
    measured = f"measured: {group.model}; " if group.rows else ""
    notes = [
        f"claimed: {claims.source} ({claims.date}), of 7B and larger models; {planned}; {measured}MB = 10^6 bytes",
        f"words follow from the mean KLD: {bands}",
        f"in brackets: the published 7-8B figures that anchor the words ({sources}); edges are their geometric means",
    ]
    if not group.rows:
        return notes
    measuring = [
        "published KLD is on wikitext-2, measured KLD on continuations sampled from the reference",
        "± is one standard error, clustered by prompt",
    ]
    return [*notes, *measuring, *instrument_note(group)]


def speed_note(reference: str) -> str:
    """The rule behind the words for inference speed."""
    scale = words().inference_speed
    bounds = [f"up to {short(edge)}" for edge in scale.edges] + ["above"]
    bands = ", ".join(f"{anchor.word} {bound}" for anchor, bound in zip(scale.anchors, bounds, strict=True))
    return f"inference speed is decode throughput over {reference}'s: {bands}; anchored on 32/bits, what bandwidth alone gives"


def instrument_note(group: Group) -> list[str]:
    """What the figures of an instrument check are good for; empty for other models."""
    check = f"{group.model} is an instrument check: its figures show that it works, and say nothing about a real model"
    return [check] if group.instrument_check else []


def _missing(lines: Sequence[Line], fields: Sequence[Field]) -> list[str]:
    """Why figures of measured rows are missing, one sentence per reason."""
    found: dict[str, dict[str, None]] = {}
    for field in fields:
        if field.heading.shown and field.heading.numeric:
            for line in lines:
                reason = line.row.null_reason(field.heading.key) if line.row and line.row.ok else ""
                if reason:
                    found.setdefault(reason, {})[field.heading.title] = None
    return [f"no {'; no '.join(titles)}: {reason}" for reason, titles in found.items()]
