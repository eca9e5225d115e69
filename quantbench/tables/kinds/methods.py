"""The methods table: bitsandbytes, GGUF, AWQ and GPTQ as claimed, beside what the probes found on one model.

One line per method: the variant that the claim is measured by, else the method's 4-bit variant, else its lowest bits; for the
reference's own method, the reference. Other methods follow without claims. Every finding is a text; a missing one says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from quantbench.claims.checked import mark_notes
from quantbench.claims.claimed import ClaimTable, claims
from quantbench.claims.evidence import Evidence
from quantbench.claims.findings import FINDINGS, Find, ProbeFinding, absent, kernel, representative, truth
from quantbench.methods import METHODS
from quantbench.results.rows import Group, Row
from quantbench.tables import TableKind
from quantbench.tables import fields as f
from quantbench.tables.assemble import assemble, instrument_note, speed_note
from quantbench.tables.lines import Line
from quantbench.tables.table import Cell, Heading

if TYPE_CHECKING:

    from quantbench.tables.table import Table

_DEVICES: Mapping[str, str] = {"CPU": "cpu", "GPU": "cuda"}
"""The claims' names of devices, and those of ``--device``."""


def table(groups: Sequence[Group]) -> list[Table]:
    """One table per run, language model and prompt set."""
    return [made for group in groups if group.reads == "prompts" and (made := _table(group))]


def _table(group: Group) -> Table | None:
    claim = claims()["methods"]
    lines = _lines(group, claim)
    if not lines:
        return None
    titles = claim.headings
    others = {"cuda_support": "CUDA support", "saves_and_reloads": "Saves and reloads"}
    found = {key: (titles.get(key) or others[key], find) for key, find in FINDINGS.items()}
    fields = f.identity(titles["method"])
    for key, (title, find) in found.items():
        if key in titles:
            fields.append(f.claimed(claim, key))
        fields.append(_field(key, title, find))
    fields += [_field("kernel", "Kernel", kernel), *_raw(group), *f.status(shown=any(line.status != "ok" for line in lines))]
    reasons = [
        f"{line.label}, {title}: {find(line).note}" for line in lines for title, find in found.values() if find(line).note
    ]
    notes = [
        f"claimed: {claim.source} ({claim.date}); found: tried on {group.model}, each in its own process",
        "fine-tuning: five LoRA steps with peft on text sampled from the variant itself; loss in nats before and after",
        "saves and reloads: reopened from safetensors or GGUF, with the same logits",
        speed_note(group.reference),
        *instrument_note(group),
        *mark_notes("methods", Evidence([group])),
        *[note for line in lines for note in _differences(line, claim, found)],
        *reasons,
    ]
    return assemble("methods", "Quantization methods", lines, fields, notes)


def _lines(group: Group, claim: ClaimTable) -> list[Line]:
    """The claimed methods in the text's order, then every other method of the group; empty where no method was planned."""
    by_method: dict[str, list[Row]] = {}
    for row in group.rows:
        if not row.flag("control"):
            by_method.setdefault(row.text("method"), []).append(row)
    lines = []
    for each in claim.rows if by_method else ():
        rows = by_method.pop(each.variant.partition("/")[0], [])
        best = representative(rows, each.variant) if rows else None
        variant = best.variant if best else each.variant
        lines.append(Line(group=group, label=each.cells["method"], variant=variant, row=best, claims=each.cells))
    for name, rows in by_method.items():
        best = representative(rows, group.reference)
        lines.append(Line(group=group, label=name, variant=best.variant, row=best, claims={}))
    return lines


def _field(key: str, title: str, find: Find) -> f.Field:
    heading = Heading(key=key, title=title, source="measured")
    return f.Field(heading, lambda line: Cell((absent(line) or find(line)).text))


def _raw(group: Group) -> list[f.Field]:
    """Figures and flags for CSV and JSON only."""
    flags = ("runs_on_cpu", "runs_on_cuda", "finetunes", "saves_and_reloads")
    hidden = [f.Field(Heading(key=f"{name}_raw", title=name, shown=False), _flag(name)) for name in flags]
    notes = f.Field(
        Heading(key="capability_notes", title="Notes", shown=False),
        lambda line: Cell((line.row.text("capability_notes") if line.row else "") or None),
    )
    speeds = [replace(each, heading=replace(each.heading, shown=False)) for each in f.speed(group.baseline)]
    figures = f.background("load_s", "quantize_s", "finetune_loss_first", "finetune_loss_last")
    return [*figures, *hidden, notes, *speeds]


def _flag(name: str) -> Callable[[Line], Cell]:
    return lambda line: Cell(truth(line, name))


def _differences(line: Line, claim: ClaimTable, found: Mapping[str, tuple[str, Find]]) -> list[str]:
    """A sentence for every claim that the finding contradicts."""
    if absent(line):
        return []
    pairs = [(key, line.claims[key], find(line)) for key, (_, find) in found.items() if key in line.claims]
    return [
        f"{line.label}, {claim.headings[key]}: claimed {claimed}, {difference}"
        for key, claimed, finding in pairs
        if (difference := _difference(line, key, claimed, finding))
    ]


def _difference(line: Line, key: str, claimed: str, finding: ProbeFinding) -> str:
    """How the finding differs from the claim; empty where they agree or nothing was found."""
    word, _, where = claimed.rstrip(")").partition(" (")
    device = line.group.fact("device")
    if finding.word.startswith("not "):
        return ""
    if where in _DEVICES and not device.startswith(_DEVICES[where]):
        return f"and measured on {device} only"
    if finding.word in (word, claimed):
        return ""
    if key == "inference_speed":
        return f"found {finding.text}"
    package = METHODS[line.row.text("method") if line.row else line.variant.partition("/")[0]].package
    version = line.group.version(package)
    place = "this CPU" if key == "cpu_support" else device
    return f"found {finding.text} on {place}" + (f" with {package} {version}" if version else "")


TABLE = TableKind(name="methods", about="bitsandbytes, GGUF, AWQ, GPTQ: speed, devices, fine-tuning", place=40, build=table)
