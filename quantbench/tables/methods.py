"""The methods table: bitsandbytes, GGUF, AWQ and GPTQ as claimed, beside what the probes found of one model.

One line a method: the variant that the claim is measured by, else the method's 4-bit variant, else its lowest bits; of the
reference's method the reference. Other methods follow without claims. Every finding is a text: what was not tried says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quantbench.tables import TableKind
from quantbench.tables import _fields as f
from quantbench.tables._assemble import assemble, instrument_note, speed_note
from quantbench.tables._lines import Line
from quantbench.tables._rows import Group, Row, groups
from quantbench.tables._show import times
from quantbench.tables._table import Cell, Heading
from quantbench.tables.claims import ClaimTable, claims
from quantbench.tables.words import words
from quantbench.units import format_seconds

if TYPE_CHECKING:
    import pandas as pd

    from quantbench.tables._table import Table

_USUAL_BITS = 4
_LONGEST = 48
"""Characters of a reason that stand in a cell; a longer one is a footnote."""

_ON_LOAD = "On-load conversion"
_PREQUANTIZED = "Pre-quantized"
_CONVERSIONS: Mapping[str, str] = {"on load": _ON_LOAD, "pre-quantized": _PREQUANTIZED}
_PACKAGES: Mapping[str, str] = {
    "bitsandbytes": "bitsandbytes", "gguf": "llama-cpp-python", "awq": "gptqmodel", "gptq": "gptqmodel",
}  # fmt: skip
_DEVICES: Mapping[str, str] = {"CPU": "cpu", "GPU": "cuda"}
"""How the claims name a device, and how a device is asked for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found: a word, what stands behind it in brackets, and a reason that goes to the footnotes if it is long."""

    word: str
    detail: str = ""
    reason: str = ""

    @property
    def text(self) -> str:
        """The cell."""
        detail = self.detail or (self.reason if len(self.reason) <= _LONGEST else "see note")
        return f"{self.word} ({detail})" if detail else self.word

    @property
    def note(self) -> str:
        """The footnote; empty where the cell says it all."""
        return self.reason if len(self.reason) > _LONGEST else ""


Find = Callable[[Line], Finding]


def table(frame: pd.DataFrame) -> list[Table]:
    """One table per run, language model and prompt set of ``frame``, which holds rows of ``scenarios``."""
    return [made for group in groups(frame) if group.reads == "prompts" and (made := _table(group))]


def _table(group: Group) -> Table | None:
    claim = claims()["methods"]
    lines = _lines(group, claim)
    if not lines:
        return None
    titles = claim.headings
    found: dict[str, tuple[str, Find]] = {
        "speed": (titles["speed"], _speed),
        "cpu_support": (titles["cpu_support"], _probed("runs_on_cpu", "cpu")),
        "cuda_support": ("CUDA support", _probed("runs_on_cuda", "cuda")),
        "inference_speed": (titles["inference_speed"], _inference_speed),
        "finetuning": (titles["finetuning"], _finetuning),
        "saves_and_reloads": ("Saves and reloads", _probed("saves_and_reloads", "save_reload")),
    }
    fields = f.identity(titles["method"])
    for key, (title, find) in found.items():
        if key in titles:
            fields.append(f.claimed(claim, key))
        fields.append(_field(key, title, find))
    fields += [_field("kernel", "Kernel", _kernel), *_raw(group), *f.status(shown=any(line.status != "ok" for line in lines))]
    reasons = [
        f"{line.label}, {title}: {find(line).note}" for line in lines for title, find in found.values() if find(line).note
    ]
    notes = [
        f"claimed: {claim.source} ({claim.date}); found: tried on {group.model}, each in a process of its own",
        "fine-tuning: five LoRA steps with peft on text sampled from the variant itself; loss in nats before and after",
        "saves and reloads: opened again from safetensors or GGUF, with the same logits",
        speed_note(group.reference),
        *instrument_note(group),
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
        best = _representative(rows, each.variant) if rows else None
        variant = best.variant if best else each.variant
        lines.append(Line(group=group, label=each.cells["method"], variant=variant, row=best, claims=each.cells))
    for name, rows in by_method.items():
        best = _representative(rows, group.reference)
        lines.append(Line(group=group, label=name, variant=best.variant, row=best, claims={}))
    return lines


def _representative(rows: list[Row], preferred: str) -> Row:
    def order(row: Row) -> tuple[bool, bool, bool, float, str]:
        bits = row.number("bits") or 0
        return row.variant != preferred, not row.ok, bits != _USUAL_BITS, bits, row.variant

    return min(rows, key=order)


def _field(key: str, title: str, find: Find) -> f.Field:
    heading = Heading(key=key, title=title, source="measured")
    return f.Field(heading, lambda line: Cell((_absent(line) or find(line)).text))


def _raw(group: Group) -> list[f.Field]:
    """Figures and flags for CSV and JSON."""
    flags = ("runs_on_cpu", "runs_on_cuda", "finetunes", "saves_and_reloads")
    hidden = [f.Field(Heading(key=f"{name}_raw", title=name, shown=False), _flag(name)) for name in flags]
    notes = f.Field(
        Heading(key="capability_notes", title="Notes", shown=False),
        lambda line: Cell((line.row.text("capability_notes") if line.row else "") or None),
    )
    speeds = [replace(each, heading=replace(each.heading, shown=False)) for each in f.speed(group.reference)]
    figures = f.background("load_s", "quantize_s", "finetune_loss_first", "finetune_loss_last")
    return [*figures, *hidden, notes, *speeds]


def _flag(name: str) -> Callable[[Line], Cell]:
    return lambda line: Cell(_truth(line, name))


def _truth(line: Line, name: str) -> bool | None:
    value = line.row.values.get(name) if line.row else None
    return None if value is None else bool(value)


def _absent(line: Line) -> Finding | None:
    """What stands in every cell of a line that was not measured."""
    if line.row is None:
        return Finding("not run")
    return None if line.row.ok else Finding("not measured", detail=line.status)


def _probed(column: str, probe: str) -> Find:
    """Yes, no, or not tried, with the reason."""

    def find(line: Line) -> Finding:
        truth = _truth(line, column)
        if truth is None:
            why = line.row.null_reason(column) if line.row else ""
            return Finding("not tried", reason=why or "no reason kept")
        return Finding("Yes") if truth else Finding("No", reason=_note(line, probe))

    return find


def _note(line: Line, probe: str) -> str:
    try:
        notes = json.loads(line.row.text("capability_notes") if line.row else "") or {}
    except ValueError:
        return ""
    return str(notes.get(probe, "")) if isinstance(notes, dict) else ""


def _speed(line: Line) -> Finding:
    """When it is quantized, and how long that and loading take."""
    word = _CONVERSIONS.get(line.row.text("conversion") if line.row else "")
    load_s, quantize_s = line.number("load_s"), line.number("quantize_s")
    if word is None:
        return Finding("not loaded here", reason=line.row.null_reason("conversion") if line.row else "")
    load = "load time unknown" if load_s is None else f"load {format_seconds(load_s)}"
    if word == _ON_LOAD:
        return Finding(word, detail=load if quantize_s is None else f"prepared in {format_seconds(quantize_s)}, {load}")
    made = "quantized elsewhere" if quantize_s is None else f"quantize {format_seconds(quantize_s)}"
    return Finding(word, detail=f"{made}, {load}")


def _inference_speed(line: Line) -> Finding:
    """The word for the speed over the reference's, with the ratio."""
    ratio = line.speed_ratio
    if ratio is None:
        return Finding("not measured", reason=line.row.null_reason("decode_tps") if line.row else "")
    mark = "" if line.alternated else f.BETWEEN_PROCESSES
    device = (line.row.text("device") if line.row else "") or "the server's machine"
    return Finding(words().inference_speed.word(ratio), detail=f"{times(ratio)}{mark} x {line.group.reference} on {device}")


def _finetuning(line: Line) -> Finding:
    """Whether LoRA steps work, with the losses."""
    finding = _probed("finetunes", "finetune")(line)
    first, last = line.number("finetune_loss_first"), line.number("finetune_loss_last")
    if finding.word == "Yes" and first is not None and last is not None:
        return Finding("Yes", detail=f"LoRA: loss {first:.2f} to {last:.2f}")
    return finding


def _kernel(line: Line) -> Finding:
    return Finding((line.row.text("kernel") if line.row else "") or "not named")


def _differences(line: Line, claim: ClaimTable, found: Mapping[str, tuple[str, Find]]) -> list[str]:
    """A sentence for every claim that the finding does not bear out."""
    if _absent(line):
        return []
    pairs = [(key, line.claims[key], find(line)) for key, (_, find) in found.items() if key in line.claims]
    return [
        f"{line.label}, {claim.headings[key]}: claimed {claimed}, {difference}"
        for key, claimed, finding in pairs
        if (difference := _difference(line, key, claimed, finding))
    ]


def _difference(line: Line, key: str, claimed: str, finding: Finding) -> str:
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
    package = _PACKAGES[line.variant.partition("/")[0]]
    version = line.group.version(package)
    place = "this CPU" if key == "cpu_support" else device
    return f"found {finding.text} on {place}" + (f" with {package} {version}" if version else "")


METHODS = TableKind(name="methods", about="bitsandbytes, GGUF, AWQ, GPTQ: speed, devices, fine-tuning", place=40, build=table)
